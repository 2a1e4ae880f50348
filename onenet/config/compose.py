"""The configuration of a run: how it is composed from conf/ and made absolute.

Hydra composes conf/config.yaml with overrides; here that becomes a plain, typed `Config` in which
everything is an absolute value. Values have their home in conf/, not here.
"""

import copy
import difflib
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from onenet.config.schema import Config
from onenet.config.validate import problems
from onenet.errors import UserError
from onenet.system.files import REPOSITORY

CONF = REPOSITORY / "conf"
OPTIONAL = ("reference", "debug")  # groups of which nothing need be chosen
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


ConfigStore.instance().store(name="schema", node=Config)


def _by_preset(values: DictConfig, *, _root_: DictConfig):
    """In conf/: `${by_preset:{paper:1,proxy:2}}` is the one that belongs to the preset."""
    if _root_.preset not in values:
        raise UserError(f"detector={_root_.detector} has no values for preset={_root_.preset}.")
    return values[_root_.preset]


OmegaConf.register_new_resolver("by_preset", _by_preset, replace=True)


def compose(overrides: list[str]) -> Config:
    """The resolved and checked configuration of one run.

    Raises UserError (at most three lines that name the key and the fix).
    """
    for word in overrides:
        if word.startswith(("+", "~")):
            raise UserError(
                f"{word}: keys can be changed, not added or removed. "
                f"Write {word.lstrip('+~').partition('=')[0]}=VALUE."
            )
    try:
        options, values = [], {}
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.key_or_group in OPTIONAL and override.value() is None:
                continue
            if override.key_or_group in GROUPS:
                options.append(override.input_line)
            else:
                values[override.key_or_group] = override.value()
        composed = copy.deepcopy(_chosen(tuple(options)))
        for key, value in values.items():
            _set(composed, key, value)
        config = _typed(composed)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_explain(error)) from error
    if found := problems(config):
        raise UserError("\n".join(found[:3]))
    return _absolute(config)


def _set(config: DictConfig, key: str, value) -> None:
    group, _, name = key.partition(".")
    if group == "model":
        value = _of_model(config, name, value)
    try:
        free = key.startswith("optim.lr_factors")  # its keys are parts of parameters' names
        OmegaConf.update(config, key, value, merge=True, force_add=free)
    except ValidationError as error:
        raise UserError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _of_model(config: DictConfig, name: str, value):
    """The value, if it is like the one that conf/detector/ has: what keys there are, and their
    types, each detector's file says."""
    if name not in config.model:
        keys = ", ".join(f"model.{known}" for known in config.model)
        has = f"has {keys}" if keys else "has no settings of its own"
        raise UserError(
            f"There is no key '{f'model.{name}'.rstrip('.')}': {config.detector} {has}."
        )
    usual = config.model[name]
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    if type(value) is not type(usual):
        raise UserError(f"model.{name}={value}: give a value like {usual}.")
    return value


@cache
def _chosen(options: tuple[str, ...]) -> DictConfig:
    """What conf/ says for these options of groups. Composing takes a tenth of a second, so the runs
    of a sweep share it; their values are put in afterwards, as Hydra does."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(options))


def from_dict(values: dict) -> Config:
    """The Config that `to_dict` made these of."""
    return _typed(OmegaConf.merge(OmegaConf.structured(Config), values))


def _typed(config: DictConfig | ListConfig) -> Config:
    return cast(Config, OmegaConf.to_object(config))


def to_dict(config: Config) -> dict:
    return asdict(config)


def _absolute(config: Config) -> Config:
    """Fills in what follows from multipliers and from the working directory."""
    if config.lr is None:
        config.lr = config.optim.base_lr * lr_scale(config) * batch_factor(config)
    if config.steps is None:
        config.steps = max(1, round(config.optim.base_steps * config.schedule))
    if config.runs_root is None:
        config.runs_root = str(REPOSITORY / ("runs_debug" if config.debug else "runs"))
    config.runs_root = str(Path(config.runs_root).expanduser().absolute())
    if config.data.name == "coco":
        root = Path(config.data.root or "").expanduser().absolute()
        config.data.root = str(root)
        for split in (config.data.train, config.data.val):
            split.images = str(root / (split.images or ""))
            split.annotations = str(root / (split.annotations or ""))
    if Path(config.backbone.weights).expanduser().is_file():
        config.backbone.weights = str(Path(config.backbone.weights).expanduser().absolute())
    return config


def lr_scale(config: Config) -> float:
    """What `lr_scale` stands for: 1 for one head, 2 for several if `auto` (Table 2)."""
    automatic = 1.0 if config.heads == 1 else 2.0
    return automatic if config.lr_scale == "auto" else float(config.lr_scale)


def batch_factor(config: Config) -> float:
    """By what the rate follows the batch. The square root is the rule for Adam (Malladi et al.,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022)."""
    ratio = config.batch / config.optim.base_batch
    return {"sqrt": ratio**0.5, "linear": ratio, "none": 1.0}[config.optim.batch_rule]


def known_keys() -> list[str]:
    """Every key that an override may set, groups included."""

    def leaves(node: Any, prefix: str):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        full = OmegaConf.to_container(hydra_compose("config"))
    return sorted({*GROUPS, *leaves(schema, ""), *leaves(full, "")})


def _explain(error: Exception) -> str:
    """Hydra's and OmegaConf's exceptions in at most three lines."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option} does not exist. Options: {', '.join(error.options)}."
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = "\n".join(str(e) for e in chain)
    key = getattr(chain[-1], "full_key", None)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{missing[1]} is not set: add {missing[1]}=VALUE."
    if "not in struct" in text or "not in" in str(chain[-1]) or "Could not override" in text:
        said = re.search(r"Could not override '([^']+)'", text)
        wrong: str = said[1] if said else key or "?"
        near = difflib.get_close_matches(wrong, known_keys(), n=3, cutoff=0.5)
        leaf = [k for k in known_keys() if k.split(".")[-1] == wrong.split(".")[-1]]
        hint = ", ".join(dict.fromkeys(leaf + near)) or "see conf/config.yaml"
        return f"There is no key '{wrong}'. Did you mean: {hint}?"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    return "\n".join(dict.fromkeys(lines[:2]))
