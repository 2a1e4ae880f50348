"""Values of a configuration that follow from others: the learning rate and steps from multipliers,
absolute paths from relative ones.
"""

from pathlib import Path

from onenet.config.schema import Config
from onenet.system.files import REPOSITORY

RELEASED = "released:"  # before the path of a checkpoint of the released code


def make_absolute(config: Config) -> Config:
    """Fills in these values, in place. Returns the config."""
    if config.lr is None:
        config.lr = config.optim.base_lr * lr_scale(config) * batch_factor(config)
    if config.steps is None:
        config.steps = max(1, round(config.optim.base_steps * config.schedule))
    config.runs_root = str(runs_root(config.runs_root, config.debug))
    if config.data.name == "coco":
        root = Path(config.data.root or "").expanduser().absolute()
        config.data.root = str(root)
        for split in (config.data.train, config.data.val):
            split.images = str(root / (split.images or ""))
            split.annotations = str(root / (split.annotations or ""))
    prefix = RELEASED if config.backbone.weights.startswith(RELEASED) else ""
    weights = Path(config.backbone.weights.removeprefix(prefix)).expanduser()
    if weights.is_file():
        config.backbone.weights = prefix + str(weights.absolute())
    return config


def runs_root(folder: str | None, debug: str | None) -> Path:
    """Returns the absolute runs root for `runs_root` and `debug`, by default beside run.py."""
    if folder is None:
        return REPOSITORY / ("runs_debug" if debug else "runs")
    return Path(folder).expanduser().absolute()


def lr_scale(config: Config) -> float:
    """Returns `lr_scale` as a number: `auto` is 1 for one head, 2 for several (Table 2)."""
    automatic = 1.0 if config.heads == 1 else 2.0
    return automatic if config.lr_scale == "auto" else float(config.lr_scale)


def batch_factor(config: Config) -> float:
    """Returns the factor of the learning rate for the batch size. The square root is the rule for
    Adam (Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
    2022)."""
    ratio = config.batch / config.optim.base_batch
    return {"sqrt": ratio**0.5, "linear": ratio, "none": 1.0}[config.optim.batch_rule]
