"""Opens W&B runs that write only inside the run's folder and have a limit on every wait."""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onenet.runs.folder import RunFolder

if TYPE_CHECKING:
    import wandb

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """Longest waits, in seconds."""

    answer: float  # for the server's first response
    artifact: float
    upload: float  # for the last uploads; the rest stays in the folder, for `wandb sync`


MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")  # of WANDB_MODE
DEFAULT_PATIENCE = Patience(answer=8, artifact=3, upload=5)  # a run waits for its mirror


class OpenError(Exception):
    """There is an API key, but the W&B run could not be opened."""

    def __init__(self, problem: str, server_answered: bool):
        super().__init__(problem)
        self.server_answered = server_answered


@contextlib.contextmanager
def exclusive_home(folder: RunFolder) -> Iterator[Path]:
    """Locks the run's W&B folder and keeps all that wandb writes inside it."""
    home = folder.path / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the previous attempt's mirror may still be finishing
        keep_inside(home)
        os.environ.pop("WANDB_RESUME", None)  # the user's would override `_init`
        import wandb

        try:
            yield home
        finally:
            wandb.teardown()
            _remove_scratch(home)


def _remove_scratch(home: Path) -> None:
    for scratch in ("tmp", "cache"):
        shutil.rmtree(home / scratch, ignore_errors=True)


def keep_inside(home: Path) -> None:
    """Makes wandb write only below `home`. It still finds the user's login."""
    _remove_scratch(home)  # left by a killed mirror
    (home / "tmp").mkdir(parents=True)
    os.environ |= {
        "WANDB_DIR": str(home.parent),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ARTIFACT_DIR": str(home / "data"),
        "TMPDIR": str(home / "tmp"),
        "WANDB_SILENT": "true",  # also avoids a wait of 10 s for a server
        "WANDB_ERROR_REPORTING": "false",  # would wait for one more server
    }


def _settings(patience: Patience) -> "wandb.Settings":
    import wandb

    settings = {
        "symlink": False,
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": POLL_SECONDS,  # what a kill can lose
        "init_timeout": patience.answer,
        "finish_timeout": patience.upload,
        "finish_timeout_raises": True,
    }
    fields = wandb.Settings.model_fields  # vary by version; each of these is optional for us
    return wandb.Settings(**{name: value for name, value in settings.items() if name in fields})


def open_run(
    folder: RunFolder, home: Path, patience: Patience = DEFAULT_PATIENCE, clear: bool = False
) -> "wandb.Run":
    """Opens the W&B run: online if there is an API key, unless the user has chosen offline.

    `clear`: replace what W&B has under this id. Raises OpenError if there is a key but the run
    cannot be opened; nothing has changed then.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in MODES:  # wandb would refuse all settings
        os.environ["WANDB_MODE"] = "offline"
        raise OpenError(f"WANDB_MODE={mode} is not one of {', '.join(MODES)}", server_answered=True)
    import wandb

    # The environment is not enough: `wandb offline` stores its choice in a settings file.
    if wandb.setup().settings.mode in ("offline", "dryrun"):
        return open_offline(folder, clear)
    before, start = set(home.iterdir()), time.monotonic()
    try:
        return _init(folder, "online", patience, clear)
    except wandb.errors.UsageError as error:  # there is no API key
        print(f"offline: {error}", flush=True)
        problem = ""
    except Exception as error:  # anything may answer at that address
        problem, seconds = first_line(error), time.monotonic() - start
    wandb.teardown()  # otherwise the id counts as in use
    for new_folder in set(home.glob("run-*")) - before:
        shutil.rmtree(new_folder)
    if problem:
        raise OpenError(problem, server_answered=seconds < patience.answer)
    return open_offline(folder, clear)


def open_offline(folder: RunFolder, clear: bool = False) -> "wandb.Run":
    return _init(folder, "offline", DEFAULT_PATIENCE, clear)


def _init(folder: RunFolder, mode: str, patience: Patience, clear: bool) -> "wandb.Run":
    """Starts the W&B run. Its group is the run's first experiment, its job type the row there."""
    import wandb

    config, status = folder.config(), folder.status()
    tracker = status.get("tracker", config["tracker"])  # of the latest command
    rows = status.get("rows", {})  # experiment: label
    group, job_type = next(iter(rows.items()), (None, None))
    return wandb.init(
        mode=mode,
        project=tracker["project"],
        entity=tracker["entity"],
        id=status["id"],
        # Also stored offline: "allow" makes `wandb sync` append this attempt to earlier ones.
        resume=None if clear else "allow",
        name=folder.path.name,
        tags=[
            config["preset"],
            config["cost"]["name"],
            config["location"],
            f"seed {config['seed']}",
            *rows,
        ],
        group=group,
        job_type=job_type,
        config=config | ({"rows": rows} if rows else {}),  # a label per experiment
        settings=_settings(patience),
    )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def to_send_later(run: "wandb.Run") -> str:
    return f"to send it later: wandb sync --include-online {Path(run.dir).parent}"


def remove_others(run: "wandb.Run") -> None:
    """Removes W&B's folders of the run's other attempts, all of which this one includes."""
    own = Path(run.dir).parent
    for attempt in own.parent.glob("*run-*-*"):
        if attempt.name != own.name:
            shutil.rmtree(attempt)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError if the body takes longer. Only works in the main thread."""

    def stop(*_) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
