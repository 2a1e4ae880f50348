"""What a search is: a file of experiments/ with the keys whose best values it looks for.

What the command line makes of the file is here, its trials in study.py, their runs in
search_sweep.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from onenet.config import options
from onenet.config.compose import COMPOSING, CannotCompose, loader
from onenet.config.validate import out_of_range
from onenet.errors import UserError, raise_for
from onenet.sweeps.experiments import GROUP, Axes, axes_of, is_search

SETTINGS = tuple(f"search.{field.name}" for field in fields(options.SearchConfig))


@dataclass(frozen=True)
class Search:
    """A file of experiments/ with a `search`, and what the command line made of it."""

    name: str
    settings: options.SearchConfig
    overrides: tuple[Override, ...]  # the same for all trials


def requested(axes: Axes) -> Search | None:
    """The search that these words of the command line ask for, if they do. Raises UserError.

    A word that sets a key of the space takes it out of the space; any other holds for all trials.
    """
    asked = axes.get(f"+{GROUP}", [])
    names = [str(one.value()) for one in asked]
    if not any(map(is_search, names)):
        return None
    if len(names) > 1:
        raise UserError(f"+{GROUP}={','.join(names)}: a search goes alone, without others.")
    own = [one for values in axes.values() for one in values if one.key_or_group in SETTINGS]
    settings, overrides = _composed([*asked, *own])
    held = axes_of(overrides) | {
        key: values for key, values in axes.items() if values[0] not in (*asked, *own)
    }
    for key, values in (axes | held).items():
        if len(values) > 1:
            listed = ",".join(str(one.value()) for one in values)
            raise UserError(f"{key}={listed}: a search holds it at one value.")
    settings.space = {key: ends for key, ends in settings.space.items() if key not in held}
    return Search(names[0], settings, tuple(one for (one,) in held.values()))


def _composed(overrides: Sequence[Override]) -> tuple[options.SearchConfig, list[str]]:
    """`search`, and `overrides` of the experiment. Raises UserError."""
    path = f"{GROUP}/{overrides[0].value()}"
    try:
        merged = loader().merge(overrides)
        settings = OmegaConf.to_object(merged.search)
        words = list(merged.experiment.get("overrides", []))
        if not isinstance(settings, options.SearchConfig):
            raise TypeError
    except COMPOSING as error:
        raise CannotCompose(error) from error
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{loader().where(path)} is not a search. It begins with\n"
            "# @package _global_\n"
            "defaults: [/search_schema@search, _self_]\n"
            "and has search, with a space, and experiment: title, question and overrides."
        ) from error
    raise_for(out_of_range(settings, "search."))
    return settings, words
