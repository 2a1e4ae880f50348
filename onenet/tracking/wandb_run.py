"""Opening a W&B run that stays inside its folder and waits for nobody longer than it is told."""

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
    """Seconds to wait at most."""

    answer: float  # for the server's first word
    artifact: float
    upload: float  # for the last uploads; what is left stays in the folder, for `wandb sync`


BESIDE_A_RUN = Patience(answer=8, artifact=3, upload=5)


class NotOpened(Exception):
    """There is a key, and no W&B run."""

    def __init__(self, problem: str, answered: bool):
        super().__init__(problem)
        self.answered = answered


@contextlib.contextmanager
def alone_inside(folder: RunFolder) -> Iterator[Path]:
    """The run's W&B folder, for one process at a time, which writes nowhere else."""
    home = folder.path / "wandb"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the mirror of the run's last life may be finishing
        keep_inside(home)
        os.environ.pop("WANDB_RESUME", None)  # a user's: what is meant is said in `_init`
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
    """Has wandb write below `home` and nowhere else. The user's login stays where wandb looks."""
    _remove_scratch(home)  # of a mirror that was killed
    (home / "tmp").mkdir(parents=True)
    os.environ |= {
        "WANDB_DIR": str(home.parent),
        "WANDB_DATA_DIR": str(home / "data"),
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_ARTIFACT_DIR": str(home / "data"),
        "TMPDIR": str(home / "tmp"),
        "WANDB_SILENT": "true",  # also keeps it from waiting 10 s more for a server
        "WANDB_ERROR_REPORTING": "false",  # would be one more server to wait for
    }


def _settings(patience: Patience) -> "wandb.Settings":
    import wandb

    wanted = {
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
        "x_transaction_log_flush_interval": POLL_SECONDS,  # what a kill can cost
        "init_timeout": patience.answer,
        "finish_timeout": patience.upload,
        "finish_timeout_raises": True,
    }
    known = wandb.Settings.model_fields  # differ from version to version; all of ours can be missed
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def open_run(
    folder: RunFolder, home: Path, patience: Patience = BESIDE_A_RUN, clear: bool = False
) -> "wandb.Run":
    """The W&B run: online if there is a key, unless the user wants offline.

    `clear`: it takes the place of what W&B has under this id. Raises NotOpened if there is a key
    and still no W&B run; then nothing has changed.
    """
    import wandb

    # Asking wandb, not the environment: `wandb offline` leaves its wish in a settings file.
    if wandb.setup().settings.mode in ("offline", "dryrun"):
        return open_offline(folder, clear)
    before, started = set(home.iterdir()), time.monotonic()
    try:
        return _init(folder, "online", patience, clear)
    except wandb.errors.UsageError as error:  # there is no key
        print(f"offline: {error}", flush=True)
        problem = ""
    except Exception as error:  # of any kind: who knows what answers at that address
        problem, seconds = first_line(error), time.monotonic() - started
    wandb.teardown()  # else the same id counts as in use
    for failed in set(home.glob("run-*")) - before:
        shutil.rmtree(failed)
    if problem:
        raise NotOpened(problem, answered=seconds < patience.answer)
    return open_offline(folder, clear)


def open_offline(folder: RunFolder, clear: bool = False) -> "wandb.Run":
    return _init(folder, "offline", BESIDE_A_RUN, clear)


def _init(folder: RunFolder, mode: str, patience: Patience, clear: bool) -> "wandb.Run":
    """Its group is the first table that the run is known to be in, its job type the row there."""
    import wandb

    config, status = folder.config(), folder.status()
    tracker = status.get("tracker", config["tracker"])  # of the last command that asked for it
    rows = status.get("rows", {})  # experiment: label
    group, job_type = next(iter(rows.items()), (None, None))
    return wandb.init(
        mode=mode,
        project=tracker["project"],
        entity=tracker["entity"],
        id=status["id"],
        # Recorded offline, too: "allow" has `wandb sync` append this life to others.
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
        config=config | ({"rows": rows} if rows else {}),  # each table has a label of its own
        settings=_settings(patience),
    )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def to_send_later(run: "wandb.Run") -> str:
    return f"to send it later: wandb sync --include-online {Path(run.dir).parent}"


def remove_others(run: "wandb.Run") -> None:
    """Removes what W&B keeps in the folder of the run's other lives: this one has it all."""
    own = Path(run.dir).parent
    for life in own.parent.glob("*run-*-*"):
        if life.name != own.name:
            shutil.rmtree(life)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer. For the main thread."""

    def stop(*_) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
