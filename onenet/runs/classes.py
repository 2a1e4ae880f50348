"""The classes that a run's network predicts: `classes.json` in its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

from onenet.data.annotations import Annotations
from onenet.errors import UserError
from onenet.system.files import read_json, write_json


@dataclass(frozen=True)
class Classes:
    """K classes; label k is category `ids[k]` with the name `names[k]`."""

    ids: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def of(annotations: Annotations) -> "Classes":
        return Classes([*annotations.category_ids], [*annotations.category_names])

    @staticmethod
    def from_dict(values: dict) -> "Classes":
        """Raises UserError if the values are not classes."""
        ids, names = values.get("ids"), values.get("names")
        if (
            not (isinstance(ids, list) and isinstance(names, list) and len(ids) == len(names) > 0)
            or {*map(type, ids)} != {int}
            or {*map(type, names)} != {str}
        ):
            raise UserError("Classes are listed by their ids and names.")
        return Classes(ids, names)

    @staticmethod
    def read(file: Path) -> "Classes | None":
        """Returns None if there is no such file. Raises UserError if it is damaged."""
        try:
            return Classes.from_dict(read_json(file)) if file.exists() else None
        except UserError as error:
            raise UserError(f"{file} is damaged: {error}") from error

    def write(self, file: Path) -> None:
        write_json(file, asdict(self))
