"""Finished runs whose config.yaml has been edited since."""

import os

from onenet.config.compose import from_dict
from onenet.config.schema import Config
from onenet.config.upgrade import upgrade
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.identity import identifying_values


def edit(folder: RunFolder) -> str | None:
    """Returns why config.yaml of a finished run no longer describes its result, in a line; None if
    it does, or if the folder has none of the two (a committed record has no config.yaml).

    Edits of keys that do not enter the run's id do not count, nor do the paths of files.
    """
    result = folder.result()
    if not folder.config_file.is_file() or not result.get("config"):
        return None
    try:
        values, original = folder.config(), upgrade(result["config"])
        if values == original:
            return None
        before = from_dict(original)
        now = _identity(from_dict(values), before)
    except UserError as error:
        return str(error).splitlines()[0]
    then = _identity(before, before)
    keys = [key for key in now | then if now.get(key) != then.get(key)]
    if not keys:
        return None
    changes = ", ".join(f"{key} is {now.get(key)}, was {then.get(key)}" for key in keys[:3])
    return f"{folder.config_file} has been edited since the run: {changes}"


def _identity(config: Config, original: Config) -> dict:
    """Returns the identifying values with the paths of the original, whose files may have moved."""
    config.data.root = original.data.root
    config.data.train, config.data.val = original.data.train, original.data.val
    if os.sep in config.backbone.weights and os.sep in original.backbone.weights:
        config.backbone.weights = original.backbone.weights
    return identifying_values(config, read_files=False)
