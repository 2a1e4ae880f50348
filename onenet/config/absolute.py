"""Values of a configuration that follow from others: rate and steps from multipliers, paths from
the working directory.
"""

from pathlib import Path

from onenet.config.schema import Config
from onenet.system.files import REPOSITORY


def absolute(config: Config) -> Config:
    """Fills them in. Returns the same config."""
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
    if Path(config.backbone.weights).expanduser().is_file():
        config.backbone.weights = str(Path(config.backbone.weights).expanduser().absolute())
    return config


def runs_root(asked: str | None, debug: str | None) -> Path:
    """Of `runs_root` and `debug`: absolute, by default beside run.py."""
    if asked is None:
        return REPOSITORY / ("runs_debug" if debug else "runs")
    return Path(asked).expanduser().absolute()


def lr_scale(config: Config) -> float:
    """What `lr_scale` stands for: 1 for one head, 2 for several if `auto` (Table 2)."""
    automatic = 1.0 if config.heads == 1 else 2.0
    return automatic if config.lr_scale == "auto" else float(config.lr_scale)


def batch_factor(config: Config) -> float:
    """By what the rate follows the batch. The square root is the rule for Adam (Malladi et al.,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022)."""
    ratio = config.batch / config.optim.base_batch
    return {"sqrt": ratio**0.5, "linear": ratio, "none": 1.0}[config.optim.batch_rule]
