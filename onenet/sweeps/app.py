"""Runs the Hydra application of run.py: what Hydra composes, and how errors end the command."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from onenet.config.compose import Loader, short_message, use
from onenet.errors import UserError
from onenet.sweeps.experiments import titles
from onenet.sweeps.process import NotDone
from onenet.system.imports import python_path
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest
from onenet.system.terminal import prepare_streams

PLUGINS = Path(__file__).resolve().parent / "plugins"  # contains the package hydra_plugins
HYDRA_NEEDS = ("runs_root=", "debug=")  # hydra.sweep.dir depends on these

run_overrides: list[str] = []  # of the command line; only our sweeper composes them
sweep_started = False  # from here on, exceptions other than UserError get a traceback


def run(main: Callable[[], None]) -> int:
    """Calls the function that `@hydra.main` decorates. Returns the exit status: 0 done, 1 a run is
    not done, 2 bad input, 75 stopped."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise exceptions, which are printed here
    sys.path.append(str(PLUGINS))
    os.environ["PYTHONPATH"] = python_path(PLUGINS)  # for processes that a launcher starts
    prepare_streams()
    try:
        _check_working_directory()
        StopRequest().install()
        _withhold_run_overrides()
        main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (KeyboardInterrupt, Preempted) as reason:
        name = f" ({reason})" if str(reason) else ""
        print(f"stopped{name}: the same command goes on from here", file=sys.stderr)
        return EXIT_STATUS
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except NotDone as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        # An OSError names its file, for example a path that is too long.
        if full_error or (sweep_started and not isinstance(error, UserError | OSError)):
            raise
        print(f"error: {short_message(error)}", file=sys.stderr)
        return 2


def _check_working_directory() -> None:
    """Raises UserError if it has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("The working directory no longer exists: cd to another.") from None


def _withhold_run_overrides() -> None:
    """Moves overrides of runs from sys.argv to `run_overrides`. Hydra would compose them before our
    sweeper does, and reject a key that only one of several options has."""
    args = get_args_parser().parse_intermixed_args(sys.argv[1:])
    OmegaConf.register_new_resolver(
        "experiment_titles", _titles if args.help else lambda: "", replace=True
    )
    for override in args.overrides:
        reject_old(override)
    prints = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    if any(prints) or any(override.startswith("hydra/sweeper=") for override in args.overrides):
        return
    for override in args.overrides:
        sys.argv.remove(override)
        is_hydras = override.lstrip("+~").startswith("hydra")
        if not is_hydras:
            run_overrides.append(override)
        if is_hydras or (override.startswith(HYDRA_NEEDS) and not override.endswith("=null")):
            sys.argv.append(override)  # after the flags: Hydra's parser takes no others between


def _titles() -> str:
    """Returns the experiments that Hydra finds, for the end of --help."""
    use(Loader(GlobalHydra.instance().config_loader()))
    return titles()


def reject_old(override: str) -> None:
    """Raises UserError for keys from before run.py was a Hydra application."""
    key, equals, value = override.lstrip("+~").partition("=")
    if key == "hydra.mode" and value.strip("'\"").upper() != "MULTIRUN":
        raise UserError(f"{override}: run.py always sweeps, even over one run. Leave it out.")
    if key.split(".")[0] != "sweep":
        return
    if key == "sweep.launcher":
        new = "hydra/launcher"
    else:
        new = "hydra.launcher" + key.removeprefix("sweep").removeprefix(".slurm")
    raise UserError(f"{key} is now {new}: write {new}{equals}{value}")
