"""run.py around Hydra: which words Hydra composes, and how errors and stops end the command."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from onenet.config.compose import Loader, in_short, use
from onenet.errors import UserError
from onenet.sweeps.experiments import titles
from onenet.sweeps.start import NotDone
from onenet.system.imports import python_path
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest

PLUGINS = Path(__file__).resolve().parent / "plugins"  # holds the folder hydra_plugins
# What was typed before run.py was a Hydra application; `sweep.slurm.KEY` is `hydra.launcher.KEY`.
MOVED = {
    "sweep.launcher": "hydra/launcher",
    "sweep.jobs": "hydra.launcher.jobs",
    "sweep.threads": "hydra.launcher.threads",
    "sweep.max_failures": "hydra.launcher.max_failures",
}

FOR_HYDRA = ("runs_root=", "debug=")  # hydra.sweep.dir follows from these

words: list[str] = []  # of the runs: for our sweeper, which alone composes them
sweeping = False  # an exception from here on is no longer about the words


def run(main: Callable[[], None]) -> int:
    """Calls what `@hydra.main` made. Returns the exit status: 0 done, 1 a run is not, 2 the input
    cannot work, 75 stopped."""
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through: what is said is said here
    _let_hydra_find_plugins()
    try:
        StopRequest().install()
        _take_words()
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
        if whole or (sweeping and not isinstance(error, UserError)):
            raise
        print(f"error: {in_short(error)}", file=sys.stderr)
        return 2


def _take_words() -> None:
    """Takes the words about runs out of what Hydra reads, and keeps them in `words`. Hydra would
    compose them before our sweeper does, and refuse a key that only one of several options has."""
    args = get_args_parser().parse_intermixed_args(sys.argv[1:])
    OmegaConf.register_new_resolver(
        "experiment_titles", _titles if args.help else lambda: "", replace=True
    )
    for word in args.overrides:
        refuse(word)
    prints = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    if any(prints) or any(word.startswith("hydra/sweeper=") for word in args.overrides):
        return
    words[:] = [word for word in args.overrides if not word.lstrip("+~").startswith("hydra")]
    for word in words:
        if not word.startswith(FOR_HYDRA) or word.endswith("=null"):
            sys.argv.remove(word)


def _titles() -> str:
    """For the end of --help: of all experiments that Hydra finds."""
    use(Loader(GlobalHydra.instance().config_loader()))
    return titles()


def _let_hydra_find_plugins() -> None:
    """Also in processes that a launcher starts."""
    sys.path.append(str(PLUGINS))
    os.environ["PYTHONPATH"] = python_path(PLUGINS)


def refuse(word: str) -> None:
    """Raises UserError if the word has another name since run.py is a Hydra application."""
    key, equals, value = word.lstrip("+~").partition("=")
    if key == "hydra.mode" and value.strip("'\"").upper() != "MULTIRUN":
        raise UserError(f"{word}: run.py sweeps, also over one run. Leave it out.")
    if key in MOVED:
        new = MOVED[key]
    elif key.startswith("sweep.slurm."):
        new = key.replace("sweep.slurm.", "hydra.launcher.")
    elif key.split(".")[0] == "sweep":
        new = "hydra.launcher"
    else:
        return
    raise UserError(f"{key} is now {new}: write {new}{equals}{value}")
