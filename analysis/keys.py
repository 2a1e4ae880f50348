"""Writes conf/README.md, the reference of all keys, from onenet/config/schema.py and conf/.

    python analysis/keys.py

To find out whether a key changes a run's id, the script changes its value and compares the ids.
"""

import sys
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml
from omegaconf import OmegaConf

from analysis.core.cli import plain_parser
from analysis.core.render import TEMPLATES
from onenet.config import options
from onenet.config.compose import compose, loader, override
from onenet.config.schema import MODELS, NAMES, Config
from onenet.errors import UserError
from onenet.runs.identity import run_id
from onenet.system.files import REPOSITORY
from onenet.system.terminal import run_command

PAGE = REPOSITORY / "conf" / "README.md"
HEAD = TEMPLATES / "keys.md"
REMARKS = yaml.safe_load((TEMPLATES / "keys.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Key:
    name: str
    field: Field
    kind: Any


def keys(node: type, prefix: str = "") -> Iterator[Key]:
    """Yields the leaves of a dataclass of the schema."""
    hints = get_type_hints(node)
    for field in fields(node):
        kind, name = hints[field.name], prefix + field.name
        if is_dataclass(kind):
            yield from keys(kind, f"{name}.")
        elif name != "model":
            yield Key(name, field, kind)


def changes_the_id(key: Key, overrides: list[str]) -> str:
    """Whether another value makes it a different run: `yes`, `no`, or what keys.yaml says."""
    if key.name in REMARKS["by_hand"]:
        return REMARKS["by_hand"][key.name]
    overrides = [*overrides, *REMARKS["preconditions"].get(key.name, ())]
    before = compose(overrides)
    for other in other_values(key, attrgetter(key.name)(before)):
        try:
            parsed = loader().parse(overrides)
            after = loader().compose([*parsed, override(key.name, other)])
        except UserError:
            continue  # the key does not allow this value
        return "yes" if run_id(after) != run_id(before) else "no"
    raise ValueError(
        f"{key.name}: none of the other values is allowed; add it to {TEMPLATES}/keys.yaml"
    )


def other_values(key: Key, value: Any) -> list[Any]:
    """Values to try in place of this one, some of which the key may not allow."""
    if names := choices(key):
        return [option for option in names if option != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2 + 0.1, value * 2]
    if isinstance(value, list):
        return [[0.5]]
    return [64, 1.5, "other"]


def type_name(kind: Any) -> str:
    name = getattr(kind, "__name__", str(kind))
    if not isinstance(kind, type):
        name = str(kind).replace("typing.", "").replace("NoneType", "None")
    return name.replace(" | None", ", or null").replace("Any", "any")


def choices(key: Key) -> list[str]:
    """The values that a key may have, if that is a finite list; else empty."""
    group, _, name = key.name.partition(".")
    if loader().is_group(key.name):
        return loader().options(key.name)
    names = NAMES.get(group, ()) if name == "name" else ()
    return list(key.field.metadata.get("choices") or names)


def bounds(key: Key) -> str:
    """Describes the values that a key may have; empty if anything goes."""
    limits = key.field.metadata
    if names := choices(key):
        return ", ".join(f"`{name}`" for name in names)
    least, most = limits.get("least"), limits.get("most")
    if most is not None:
        return f"{least:g} to {most:g}"
    return "" if least is None else f"at least {least:g}"


def description(key: Key) -> str:
    """The cells of a key that are the same for all presets."""
    return f"`{key.name}` | {type_name(key.kind)} | {bounds(key)}"


def format_value(value: Any) -> str:
    if value is None:
        return "—"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(keys: Iterator[Key], overrides: list[str]) -> list[str]:
    """The table's lines for these keys, which must have an effect with these overrides."""
    proxy, paper = (
        loader().merge(loader().parse([*overrides, *preset]))
        for preset in ([], ["preset=paper", "data=shapes"])
    )
    lines = []
    for key in keys:
        ours, papers = (select(config, key.name) for config in (proxy, paper))
        default = format_value(ours) + (f"; paper {format_value(papers)}" if papers != ours else "")
        lines.append(f"| {description(key)} | {default} | {changes_the_id(key, overrides)} |")
    return lines


def select(config: Any, name: str) -> Any:
    value = OmegaConf.select(config, name)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def page() -> str:
    """Returns the text of conf/README.md."""
    head = ["| key | type | values | default | id |", "|---|---|---|---|---|"]
    parts = [HEAD.read_text(encoding="utf-8"), *head, *rows(keys(Config), [])]
    for detector, model in MODELS.items():
        parts += ["", f"With `detector={detector}`:", "", *head]
        parts += rows(keys(model, "model."), [f"detector={detector}"])
    parts += ["", "For a search (`+experiment=search_cost`); not part of the trials' ids:", ""]
    parts += ["| key | type | values |", "|---|---|---|"]
    parts += [f"| {description(key)} |" for key in keys(options.SearchConfig, "search.")]
    return "\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """Returns 0."""
    plain_parser(__doc__).parse_args(arguments)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
