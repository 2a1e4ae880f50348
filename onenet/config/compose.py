"""Composes the configurations of runs from conf/, with Hydra.

Overrides are parsed and configurations composed nowhere else. The values are in conf/, their types
and bounds in schema.py.
"""

import copy
import dataclasses
import pickle
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from onenet.config.absolute import make_absolute, runs_root
from onenet.config.options import SearchConfig
from onenet.config.schema import MODELS, Config
from onenet.config.validate import problems
from onenet.errors import UserError, raise_for
from onenet.system.files import REPOSITORY

CONF = REPOSITORY / "conf"
SWEEP_KEYS = ("experiment", "search")  # in what Hydra composes, but not in a run's Config
OPTIONAL_GROUPS = ("reference", "debug")  # may be null: no option chosen
OPEN_DICTIONARIES = ("optim.lr_factors",)  # users add keys: +optim.lr_factors.backbone=0.1
# Raised when a user's YAML or overrides cannot be read or composed.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
ERROR_LINES = 12


class ComposeError(UserError):
    """Overrides that Hydra cannot compose, with Hydra's message."""

    def __init__(self, error: Exception):
        super().__init__(short_message(error))


class _Files(CachingConfigRepository):
    """Reads each file once and drops its settings of Hydra itself. Lists of defaults are copies,
    since Hydra changes them."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        result = super().load_config(config_path)
        if result is None:
            return None
        values = result.config
        if isinstance(values, DictConfig) and "hydra" in values and not result.is_schema_source:
            values.pop("hydra")
        return dataclasses.replace(result, defaults_list=copy.deepcopy(result.defaults_list))


class _Copies(_Files):
    """The same files with copies of their values, since Hydra merges into them."""

    def __init__(self, files: _Files):
        self.delegate, self.cache = files.delegate, files.cache

    def load_config(self, config_path: str) -> ConfigResult | None:
        result = super().load_config(config_path)
        return result and dataclasses.replace(result, config=copy.deepcopy(result.config))


class Loader:
    """Composes the configuration of each run with Hydra's own functions. Runs with the same options
    of groups share one composition; each then applies its own values."""

    def __init__(self, hydra: ConfigLoader, name: str = "config", overrides: Sequence[str] = ()):
        """`overrides`: of Hydra's own keys (hydra.searchpath=...)."""
        assert isinstance(hydra, ConfigLoaderImpl)  # Hydra has no other
        self._hydra, self._name = hydra, name
        self._parser = OverridesParser.create(config_loader=hydra)
        _, sources = hydra._parse_overrides_and_create_caching_repo(name, [*overrides])
        self._files = _Files(sources)
        self._compositions: dict[tuple, bytes] = {}  # pickled: six times faster than deepcopy

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parses overrides by Hydra's grammar. Raises ComposeError."""
        try:
            return self._parser.parse_overrides([*overrides])
        except HydraException as error:
            raise ComposeError(error) from error

    def parse_run(self, overrides: Sequence[str]) -> list[Override]:
        """Parses overrides and drops those of Hydra's own keys. Raises ComposeError."""
        return [one for one in self.parse(overrides) if not one.is_hydra_override()]

    def options(self, group: str) -> list[str]:
        """Returns the options of a group, in conf/<group>/ and in the user's folder."""
        return self._files.get_group_options(group)

    def is_group(self, key: str) -> bool:
        return self._files.group_exists(key)

    def read(self, path: str) -> dict:
        """Returns the values of one file, such as `experiment/table1`. Raises UserError."""
        try:
            result = self._files.load_config(path)
        except (*COMPOSE_ERRORS, OSError) as error:
            raise UserError(f"{path}.yaml cannot be read: {short_message(error)}") from error
        if result is None:
            raise UserError(_not_found(path, self.options(path.rpartition("/")[0])))
        values = OmegaConf.to_container(result.config)
        return values if isinstance(values, dict) else {}

    def file(self, path: str) -> str:
        """Returns the file that `read` reads, for messages."""
        result = self._files.load_config(path)
        return f"{result.path.removeprefix('file://')}/{path}.yaml" if result else path

    def compose(self, overrides: Sequence[Override]) -> Config:
        """Returns the checked configuration of one run. Raises ComposeError, or UserError with all
        problems of the configuration."""
        for override in overrides:
            key = override.key_or_group
            if override.type != OverrideType.CHANGE and not key.startswith(OPEN_DICTIONARIES):
                raise UserError(
                    f"{override.input_line}: keys can be changed, not added or removed. "
                    f"Write {key}=VALUE."
                )
        try:
            merged = self.merge(overrides)
            with open_dict(merged):
                for key in SWEEP_KEYS:
                    merged.pop(key)
            config = _typed(merged)
        except COMPOSE_ERRORS as error:
            raise ComposeError(error) from error
        raise_for(problems(config))
        return make_absolute(config)

    def merge(self, overrides: Sequence[Override]) -> DictConfig:
        """Returns what Hydra composes. Raises Hydra's and OmegaConf's exceptions."""
        choices, values = [], []
        for override in overrides:
            group = override.key_or_group
            if not self.is_group(group):
                values.append(override)
            elif not chooses_nothing(override):
                if not isinstance(override.value(), str):
                    options = ", ".join(self.options(group))
                    raise UserError(f"{override_text(override)}: choose one of {options}.")
                choices.append(override)
        key = tuple(override.input_line for override in choices)
        if key not in self._compositions:
            self._compositions[key] = pickle.dumps(self._compose_groups(choices))
        config = pickle.loads(self._compositions[key])
        try:
            self._hydra._apply_overrides_to_config(values, config)
        except AttributeError as error:  # of OmegaConf: a dictionary instead of null
            texts = ", ".join(o.input_line or "" for o in values if isinstance(o.value(), dict))
            raise UserError(
                f"{texts}: on the command line, a dictionary cannot replace null. "
                "Set it in a YAML file (onenet/README.md, Parts of your own)."
            ) from error
        return config

    def _compose_groups(self, choices: list[Override]) -> DictConfig:
        defaults: list[ResultDefault] = create_defaults_list(
            repo=self._files,
            config_name=self._name,
            overrides_list=choices,
            prepend_hydra=True,
            skip_missing=False,
        ).defaults
        own = [item for item in defaults if not str(item.config_path).startswith("hydra/")]
        config = self._hydra._compose_config_from_defaults_list(own, _Copies(self._files))
        OmegaConf.set_struct(config, True)
        return config


_current: list[Loader] = []


def loader() -> Loader:
    """Returns the current loader. It reads conf/, unless `use` or `use_folder` was called."""
    if not _current:
        use_folder(None)
    return _current[0]


def use(loader: Loader) -> None:
    _current[:] = [loader]


def use_folder(config_dir: str | None) -> None:
    """Makes `loader` read conf/ and, as `run.py --config-dir` does, the user's folder. Raises
    UserError."""
    use(_folder_loader(None if config_dir is None else str(Path(config_dir).absolute())))


@cache
def _folder_loader(config_dir: str | None) -> Loader:
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder.")
    version.setbase("1.3")
    Plugins.instance()  # registers the kinds of sources: pkg://, file://, structured://
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{CONF}")
    if config_dir is not None:
        path.append("command-line", f"file://{config_dir}")
    path.append("schema", "structured://")
    return Loader(ConfigLoaderImpl(config_search_path=path))


def compose(overrides: Sequence[str]) -> Config:
    """Returns the checked configuration of the run with these overrides; Hydra's own keys are
    ignored. Raises UserError."""
    return loader().compose(loader().parse_run(overrides))


def override(key: str, value: Any) -> Override:
    """Returns `key=value` for a value that needs no parsing."""
    result = Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value)
    result.input_line = override_text(result)
    return result


def override_text(override: Override) -> str:
    """Returns the override as a user would type it."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def chooses_nothing(override: Override) -> bool:
    """Whether this is `group=null` for a group that may be null, which is its default."""
    return override.value() is None and override.key_or_group in OPTIONAL_GROUPS


def split_sweep(override: Override) -> Iterator[Override]:
    """Yields one override for each value of a list, range(), glob(), ... Raises UserError."""
    if not override.is_sweep_override():
        yield override
        return
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a sweep needs a list of values.")
    for value in override.sweep_iterator():
        one = dataclasses.replace(override, value_type=ValueType.ELEMENT, _value=value)
        one.input_line = override_text(one)
        yield one


def from_dict(values: dict) -> Config:
    """Inverts `to_dict`. Raises UserError if a value has the wrong type."""
    try:
        config = OmegaConf.merge(OmegaConf.structured(Config), {**values, "model": {}})
        if model := MODELS.get(values["detector"]):
            config.model = OmegaConf.merge(OmegaConf.structured(model), values["model"])
        else:
            config.model = values["model"]
        return _typed(cast(DictConfig, config))
    except (OmegaConfBaseException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(" ".join(short_message(error).split())) from error


def _typed(config: DictConfig) -> Config:
    return cast(Config, OmegaConf.to_object(config))


def to_dict(config: Config) -> dict:
    return dataclasses.asdict(config)


def short_message(error: BaseException) -> str:
    """Returns the message of Hydra's or OmegaConf's exception, in at most ERROR_LINES lines."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _not_found(str(error.missing_cfg_file), error.options or ())
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [line for line in str(cause).splitlines() if line.strip()]
        cause = cause.__cause__
    return "\n".join([*dict.fromkeys(lines)][:ERROR_LINES]) or type(error).__name__


def _not_found(path: str, options: Sequence[str]) -> str:
    available = f"\nAvailable options in '{path.rpartition('/')[0]}': {', '.join(options)}"
    return f"Could not find '{path}'" + (available if options else "")


def _by_preset(values: DictConfig, *, _root_: DictConfig):
    """Resolves `${by_preset:{paper:1,proxy:2}}` in conf/ to the value for the preset."""
    if _root_.preset not in values:
        raise UserError(f"detector={_root_.detector} has no values for preset={_root_.preset}.")
    return values[_root_.preset]


def _register() -> None:
    """Registers the schemas and resolvers that conf/ refers to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="sweep_schema", node=dict.fromkeys(SWEEP_KEYS))
    store.store(name="search_schema", node=SearchConfig, package="search")
    for detector, model in MODELS.items():
        store.store(name=f"{detector}_schema", node=model, package="model")
    OmegaConf.register_new_resolver("by_preset", _by_preset, replace=True)
    OmegaConf.register_new_resolver(
        "root_of_runs",
        lambda *, _root_: str(runs_root(_root_.runs_root, _root_.debug)),
        replace=True,
    )


_register()
