"""The reference of all keys, conf/README.md: made from onenet/config/schema.py and conf/.

    python analysis/keys.py

Whether a key changes a run's id is tried: its value is changed, and the id compared.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from omegaconf import OmegaConf

from onenet.config import options
from onenet.config.compose import compose, loader, override
from onenet.config.schema import MODELS, NAMES, Config
from onenet.errors import UserError
from onenet.runs.identity import run_id
from onenet.system.files import REPOSITORY

PAGE = REPOSITORY / "conf" / "README.md"
HEAD = """# conf

The configuration of a run, for [Hydra](https://hydra.cc). [config.yaml](config.yaml) has every key
with a comment, and chooses an option of each group; a group is a folder, an option a file in it;
[preset/](preset) sets the scale. `experiment` is [../experiments](../experiments), and
[hydra/launcher/](hydra/launcher) says where runs take place. Print what words make of it:
`python run.py --cfg job cost=loc_only`.

All keys (this page is made by `python analysis/keys.py`). Default: of `preset=proxy`, and of
`preset=paper` where that differs; `—`: not set. Id: whether another value is another training; the
others may differ between commands for the same run.
"""
HAND = {  # what cannot be tried: it needs files
    **dict.fromkeys(("preset", "reference", "debug"), "by what it sets"),
    "data.name": "yes",
    "data.root": "no",
    "data.train.images": "no",
    "data.val.images": "no",
    "data.train.annotations": "its content",
    "data.val.annotations": "its content",
    "data.on_bad_image": "yes, with files",
    "data.crowd": "yes, with files",
    "backbone.weights": "yes; of a file, its content",
    "optim.lr_factors": "yes",
    "assigner.own": "yes",
    "neck.own": "yes",
    "data.own": "yes",
    "cost.terms": "yes",
}
WITH = {  # what a key needs to have an effect
    "cost.weights.center": ["location=predefined"],
    "data.shapes.body_scale": ["data.shapes.kind=parts"],
    "data.shapes.part_side": ["data.shapes.kind=parts"],
    "optim.milestones": ["optim.decay=multistep"],
    "infer_heads": ["heads=3"],
    "batch": ["optim.batch_rule=none"],
    "optim.batch_rule": ["batch=4"],
    "accumulate": ["batch=64"],
    "processes": ["batch=64"],
}


@dataclass(frozen=True)
class Key:
    name: str
    field: Field
    kind: Any


def keys(node: type, prefix: str = "") -> Iterator[Key]:
    """The leaves of a dataclass of the schema."""
    hints = get_type_hints(node)
    for field in fields(node):
        kind, name = hints[field.name], prefix + field.name
        if is_dataclass(kind):
            yield from keys(kind, f"{name}.")
        elif name != "model":
            yield Key(name, field, kind)


def value_of(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def changes_the_id(key: Key, words: list[str]) -> str:
    """`yes` or `no`: with another value, is it another run?"""
    if key.name in HAND:
        return HAND[key.name]
    words = [*words, *WITH.get(key.name, ())]
    before = compose(words)
    for other in others(key, value_of(before, key.name)):
        try:
            parsed = loader().parse(words)
            after = loader().compose([*parsed, override(key.name, other)])
        except UserError:
            continue  # not a value that it may have
        return "yes" if run_id(after) != run_id(before) else "no"
    raise ValueError(f"{key.name}: no other value of it is known; enter it in HAND or WITH")


def others(key: Key, value: Any) -> list[Any]:
    """Values to try in place of this one."""
    if names := choices(key):
        return [option for option in names if option != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2 + 0.1, value * 2]
    if isinstance(value, list):
        return [[0.5]]
    return [64, 1.5, "other"]


def kind_of(kind: Any) -> str:
    name = getattr(kind, "__name__", str(kind))
    if not isinstance(kind, type):
        name = str(kind).replace("typing.", "").replace("NoneType", "None")
    return name.replace(" | None", ", or null").replace("Any", "any")


def choices(key: Key) -> list[str]:
    """What it may be, where that is a list."""
    group, _, name = key.name.partition(".")
    if loader().is_group(key.name):
        return loader().options(key.name)
    return list(
        key.field.metadata.get("choices") or (NAMES.get(group, ()) if name == "name" else ())
    )


def bounds(key: Key) -> str:
    """What the value may be."""
    told = key.field.metadata
    if names := choices(key):
        return ", ".join(f"`{name}`" for name in names)
    least, most = told.get("least"), told.get("most")
    if most is not None:
        return f"{least:g} to {most:g}"
    return "" if least is None else f"at least {least:g}"


def shown(value: Any) -> str:
    if value is None:
        return "—"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(found: Iterator[Key], words: list[str]) -> list[str]:
    """The lines of the table, of keys that have an effect with these words."""
    proxy, paper = (
        loader().merge(loader().parse([*words, *more]))
        for more in ([], ["preset=paper", "data=shapes"])
    )
    lines = []
    for key in found:
        ours, papers = (select(config, key.name) for config in (proxy, paper))
        default = shown(ours) + (f"; paper {shown(papers)}" if papers != ours else "")
        lines.append(
            f"| `{key.name}` | {kind_of(key.kind)} | {bounds(key)} | {default} "
            f"| {changes_the_id(key, words)} |"
        )
    return lines


def select(config: Any, name: str) -> Any:
    value = OmegaConf.select(config, name)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def page() -> str:
    """conf/README.md"""
    head = ["| key | type | may be | default | id |", "|---|---|---|---|---|"]
    parts = [HEAD, *head, *rows(keys(Config), [])]
    for detector, model in MODELS.items():
        parts += ["", f"With `detector={detector}`:", "", *head]
        parts += rows(keys(model, "model."), [f"detector={detector}"])
    parts += ["", "Of a search (`+experiment=search_cost`; no part of the trials' ids):", ""]
    parts += ["| key | type | may be |", "|---|---|---|"]
    for key in keys(options.SearchConfig, "search."):
        parts.append(f"| `{key.name}` | {kind_of(key.kind)} | {bounds(key)} |")
    return "\n".join(parts) + "\n"


def main(arguments: list[str]) -> int:
    """0."""
    about = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=about).parse_args(arguments)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
