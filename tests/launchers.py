"""Launchers chosen by overrides."""

import sys
from collections.abc import Sequence

import yaml

from onenet.config.compose import CONF, loader
from onenet.sweeps.app import PLUGINS
from onenet.sweeps.local import Local
from onenet.sweeps.slurm import Slurm

sys.path.append(str(PLUGINS))
from hydra_plugins.onenet import LocalLauncher, SlurmLauncher


def launcher_of(overrides: Sequence[str] = ()) -> Local | Slurm:
    parsed = [one for one in loader().parse(overrides) if one.is_hydra_override()]
    options = {one.key_or_group.removeprefix("hydra.launcher."): one.value() for one in parsed}
    name = options.pop("hydra/launcher", "local")
    options = yaml.safe_load((CONF / f"hydra/launcher/{name}.yaml").read_text()) | options
    options.pop("_target_")
    return {"local": LocalLauncher, "slurm": SlurmLauncher}[name](**options).run_launcher()
