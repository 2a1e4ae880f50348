"""Opening a W&B run that stays inside its folder and does not wait long for anybody."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from onenet.runs import RunFolder

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 8  # for a server to answer; then the mirror is made offline
UPLOAD_SECONDS = 5  # for the last uploads; what is left stays in the folder, for `wandb sync`
POLL_SECONDS = 1.0


def keep_inside(home: Path) -> None:
    """Has wandb write below `home` and nowhere else. The user's login stays where wandb looks."""
    for scratch in ("tmp", "cache"):
        shutil.rmtree(home / scratch, ignore_errors=True)  # of a mirror that was killed
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


def open_run(folder: RunFolder, home: Path) -> tuple["wandb.Run", str]:
    """The W&B run, and what went wrong if it is offline although there is a key."""
    import wandb

    config = folder.config()
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
        "init_timeout": INIT_SECONDS,
        "finish_timeout": UPLOAD_SECONDS,
        "finish_timeout_raises": True,
    }
    known = wandb.Settings.model_fields  # differ from version to version; all of ours can be missed
    settings = {name: value for name, value in wanted.items() if name in known}

    def init(mode: str) -> wandb.Run:
        return wandb.init(
            mode=mode,
            project=config["tracker"]["project"],
            entity=config["tracker"]["entity"],
            id=folder.status()["id"],
            resume="allow",  # recorded offline, too: makes `wandb sync` append this life to others
            name=folder.path.name,
            tags=[
                config["preset"],
                config["cost"]["name"],
                config["location"],
                f"seed {config['seed']}",
            ],
            config=config,
            settings=wandb.Settings(**settings),
        )

    # Asking wandb, not the environment: `wandb offline` leaves its wish in a settings file.
    if wandb.setup().settings.mode in ("offline", "dryrun"):
        return init("offline"), ""
    before = set(home.iterdir())
    try:
        return init("online"), ""
    except wandb.errors.UsageError as error:  # there is no key
        print(f"offline: {error}", flush=True)
        problem = ""
    except Exception as error:  # of any kind: who knows what answers at that address
        problem = first_line(error)
    wandb.teardown()  # else the same id counts as in use
    for failed in set(home.glob("run-*")) - before:
        shutil.rmtree(failed)
    run = init("offline")
    return run, problem and f"{problem}; {to_send_later(run)}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]


def to_send_later(run: "wandb.Run") -> str:
    return f"to send it later: wandb sync --include-online {Path(run.dir).parent}"
