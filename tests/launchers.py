"""Launchers, as the words of a command line choose them."""

import sys
from collections.abc import Sequence

import yaml

from onenet.config.compose import CONF, loader
from onenet.sweeps.app import PLUGINS
from onenet.sweeps.launch import Local, Slurm

sys.path.append(str(PLUGINS))
from hydra_plugins.onenet import LocalLauncher, SlurmLauncher


def launcher_of(words: Sequence[str] = ()) -> Local | Slurm:
    parsed = [one for one in loader().parse(words) if one.is_hydra_override()]
    asked = {one.key_or_group.removeprefix("hydra.launcher."): one.value() for one in parsed}
    name = asked.pop("hydra/launcher", "local")
    options = yaml.safe_load((CONF / f"hydra/launcher/{name}.yaml").read_text()) | asked
    options.pop("_target_")
    return {"local": LocalLauncher, "slurm": SlurmLauncher}[name](**options).runs()
