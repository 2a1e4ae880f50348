"""run.py around Hydra: what is checked before it, and how errors and stops end the command."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onenet.config.compose import CONF, Loader, in_short, use
from onenet.errors import UserError
from onenet.sweeps.experiments import titles
from onenet.system.signals import EXIT_STATUS, Preempted, StopRequest

PLUGINS = Path(__file__).resolve().parent / "plugins"  # holds the folder hydra_plugins
# What was typed before run.py was a Hydra application; `sweep.slurm.KEY` is `hydra.launcher.KEY`.
MOVED = {
    "sweep.launcher": "hydra/launcher",
    "sweep.jobs": "hydra.launcher.jobs",
    "sweep.threads": "hydra.launcher.threads",
    "sweep.max_failures": "hydra.launcher.max_failures",
}


def run(main: Callable[[], None]) -> int:
    """Calls what `@hydra.main` made. Returns the exit status: 0 done, 1 a run is not, 2 the input
    cannot work, 75 stopped."""
    whole = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through: what is said is said here
    _let_hydra_find_plugins()
    try:
        StopRequest().install()
        for word in sys.argv[1:]:
            refuse(word)
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
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        if whole == "1":
            raise
        print(f"error: {in_short(error)}", file=sys.stderr)
        return 2


def _let_hydra_find_plugins() -> None:
    """Also in processes that a launcher starts."""
    sys.path.append(str(PLUGINS))
    paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    OmegaConf.register_new_resolver("experiment_titles", _titles, replace=True)


def _titles() -> str:
    use(Loader(GlobalHydra.instance().config_loader()))
    return titles()


def refuse(word: str) -> None:
    """Raises UserError if the word has another name since run.py is a Hydra application, or would
    have Hydra end in a traceback."""
    key, equals, value = word.lstrip("+~").partition("=")
    if value == "null" and (CONF / key).is_dir():
        raise UserError(f"{word}: an option of a group has a name. Leave it out.")
    if key == "hydra.mode" and value != "MULTIRUN":
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
