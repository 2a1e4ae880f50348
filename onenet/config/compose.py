"""The configurations of runs: how Hydra composes them from conf/.

The one place where words of a command line are parsed and configurations composed. Values have
their home in conf/, types and bounds in schema.py.
"""

import copy
import dataclasses
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

from onenet.config.absolute import absolute, runs_root
from onenet.config.options import SearchConfig
from onenet.config.schema import MODELS, Config
from onenet.config.validate import problems
from onenet.errors import UserError, raise_for
from onenet.system.files import REPOSITORY

CONF = REPOSITORY / "conf"
NOT_OF_A_RUN = ("experiment", "search")  # in what Hydra composes
OPTIONAL = ("reference", "debug")  # groups of which nothing need be chosen: null
FREE = ("optim.lr_factors",)  # dictionaries whose keys are the user's: +optim.lr_factors.word=0.1
# What reading and composing raise, for what the user has written.
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError)
ERROR_LINES = 12


class CannotCompose(UserError):
    """What Hydra says of words that it cannot compose."""

    def __init__(self, error: Exception):
        super().__init__(in_short(error))


class _Files(CachingConfigRepository):
    """Reads each file once, without what it says of Hydra itself. `copies`: hands out copies of the
    values, since composing changes what it is given, as a list of defaults is by what follows."""

    copies = False

    def load_config(self, config_path: str) -> ConfigResult | None:
        found = super().load_config(config_path)
        if found is None:
            return None
        values, is_schema = found.config, found.is_schema_source
        if isinstance(values, DictConfig) and "hydra" in values and not is_schema:
            values.pop("hydra")
        config = copy.deepcopy(values) if self.copies else values
        defaults = copy.deepcopy(found.defaults_list)
        return dataclasses.replace(found, config=config, defaults_list=defaults)


class Loader:
    """Composes the configuration of each run with Hydra's own functions. Runs that choose the same
    options of groups share one composition, to which each applies its values."""

    def __init__(self, hydra: ConfigLoader, name: str = "config", hydra_words: Sequence[str] = ()):
        """`hydra_words`: those of the command line that are Hydra's own (hydra.searchpath=...)."""
        assert isinstance(hydra, ConfigLoaderImpl)  # Hydra has no other
        self._hydra, self._name = hydra, name
        self._parser = OverridesParser.create(config_loader=hydra)
        _, sources = hydra._parse_overrides_and_create_caching_repo(name, [*hydra_words])
        self._repository = _Files(sources)
        self._chosen: dict[tuple, DictConfig] = {}

    def parse(self, words: Sequence[str]) -> list[Override]:
        """By Hydra's grammar. Raises CannotCompose."""
        try:
            return self._parser.parse_overrides([*words])
        except HydraException as error:
            raise CannotCompose(error) from error

    def options(self, group: str) -> list[str]:
        """Of a group: the files in conf/<group>/ and in a folder of the user's."""
        return self._repository.get_group_options(group)

    def is_group(self, key: str) -> bool:
        return self._repository.group_exists(key)

    def read(self, path: str) -> dict:
        """One file as it stands: `experiment/table1`. Raises UserError."""
        try:
            found = self._repository.load_config(path)
        except COMPOSING as error:
            raise UserError(f"{path}.yaml cannot be read: {in_short(error)}") from error
        if found is None:
            raise UserError(_not_found(path, self.options(path.rpartition("/")[0])))
        values = OmegaConf.to_container(found.config)
        return values if isinstance(values, dict) else {}

    def where(self, path: str) -> str:
        """The file that `read` reads."""
        found = self._repository.load_config(path)
        return f"{found.path.removeprefix('file://')}/{path}.yaml" if found else path

    def compose(self, overrides: Sequence[Override]) -> Config:
        """The checked configuration of one run. Raises CannotCompose, and UserError with all that
        is wrong with it."""
        for one in overrides:
            if one.type != OverrideType.CHANGE and not one.key_or_group.startswith(FREE):
                raise UserError(
                    f"{one.input_line}: keys can be changed, not added or removed. "
                    f"Write {one.key_or_group}=VALUE."
                )
        try:
            config = self.merge(overrides)
            with open_dict(config):
                for key in NOT_OF_A_RUN:
                    config.pop(key)
            typed = _typed(config)
        except COMPOSING as error:
            raise CannotCompose(error) from error
        raise_for(problems(typed))
        return absolute(typed)

    def merge(self, overrides: Sequence[Override]) -> DictConfig:
        """What Hydra composes. Raises Hydra's and OmegaConf's exceptions."""
        groups, values = [], []
        for one in overrides:
            if not self.is_group(one.key_or_group):
                values.append(one)
            elif not no_option(one):
                if not isinstance(one.value(), str):
                    listed = ", ".join(self.options(one.key_or_group))
                    raise UserError(f"{word(one)}: choose one of {listed}.")
                groups.append(one)
        key = tuple(override.input_line for override in groups)
        if key not in self._chosen:
            self._chosen[key] = self._choose(groups)
        config = copy.deepcopy(self._chosen[key])
        self._hydra._apply_overrides_to_config(values, config)
        return config

    def _choose(self, groups: list[Override]) -> DictConfig:
        defaults: list[ResultDefault] = create_defaults_list(
            repo=self._repository,
            config_name=self._name,
            overrides_list=groups,
            prepend_hydra=True,
            skip_missing=False,
        ).defaults
        own = [one for one in defaults if not str(one.config_path).startswith("hydra/")]
        self._repository.copies = True
        config = self._hydra._compose_config_from_defaults_list(own, self._repository)
        self._repository.copies = False
        OmegaConf.set_struct(config, True)
        return config


_in_use: list[Loader] = []


def loader() -> Loader:
    """The one in use. It reads conf/, unless `use` or `use_folder` was called."""
    if not _in_use:
        use_folder(None)
    return _in_use[0]


def use(loader: Loader) -> None:
    _in_use[:] = [loader]


def use_folder(config_dir: str | None) -> None:
    """Has `loader` read conf/ and, as `run.py --config-dir` does, a folder of the user's. Raises
    UserError."""
    use(_of_folder(None if config_dir is None else str(Path(config_dir).absolute())))


@cache
def _of_folder(config_dir: str | None) -> Loader:
    if config_dir is not None and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir {config_dir} is not a folder.")
    version.setbase("1.3")
    Plugins.instance()  # registers the kinds of places in which configurations can be
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("main", f"file://{CONF}")
    if config_dir is not None:
        path.append("command-line", f"file://{config_dir}")
    path.append("schema", "structured://")
    return Loader(ConfigLoaderImpl(config_search_path=path))


def compose(words: Sequence[str]) -> Config:
    """The checked configuration of the run that these words ask for; Hydra's own keys say nothing
    of it. Raises UserError."""
    parsed = loader().parse(words)
    return loader().compose([one for one in parsed if not one.is_hydra_override()])


def override(key: str, value: Any) -> Override:
    """`key=value`, of a value that need not be parsed."""
    made = Override(OverrideType.CHANGE, key, ValueType.ELEMENT, value)
    made.input_line = word(made)
    return made


def word(override: Override) -> str:
    """The override as a user would type it."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def no_option(override: Override) -> bool:
    """Is it `group=null`, of a group of which nothing need be chosen? conf/config.yaml says so."""
    return override.value() is None and override.key_or_group in OPTIONAL


def values_of(override: Override) -> Iterator[Override]:
    """One for each value that it lists, by a comma, range(), glob(), ... Raises UserError."""
    if not override.is_sweep_override():
        yield override
        return
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: a sweep needs a list of values.")
    for value in override.sweep_iterator():
        one = dataclasses.replace(override, value_type=ValueType.ELEMENT, _value=value)
        one.input_line = word(one)
        yield one


def from_dict(values: dict) -> Config:
    """The Config that `to_dict` made these of."""
    config = OmegaConf.merge(OmegaConf.structured(Config), {**values, "model": {}})
    if model := MODELS.get(values["detector"]):
        config.model = OmegaConf.merge(OmegaConf.structured(model), values["model"])
    else:
        config.model = values["model"]
    return _typed(cast(DictConfig, config))


def _typed(config: DictConfig) -> Config:
    return cast(Config, OmegaConf.to_object(config))


def to_dict(config: Config) -> dict:
    return dataclasses.asdict(config)


def in_short(error: BaseException) -> str:
    """The text of Hydra's and OmegaConf's exceptions, in at most ERROR_LINES lines."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _not_found(str(error.missing_cfg_file), error.options or ())
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [line for line in str(cause).splitlines() if line.strip()]
        cause = cause.__cause__
    return "\n".join([*dict.fromkeys(lines)][:ERROR_LINES]) or type(error).__name__


def _not_found(path: str, options: Sequence[str]) -> str:
    listed = f"\nAvailable options in '{path.rpartition('/')[0]}': {', '.join(options)}"
    return f"Could not find '{path}'" + (listed if options else "")


def _by_preset(values: DictConfig, *, _root_: DictConfig):
    """In conf/: `${by_preset:{paper:1,proxy:2}}` is the one that belongs to the preset."""
    if _root_.preset not in values:
        raise UserError(f"detector={_root_.detector} has no values for preset={_root_.preset}.")
    return values[_root_.preset]


def _register() -> None:
    """What conf/ refers to."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(name="sweep_schema", node={"experiment": None, "search": None})
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
