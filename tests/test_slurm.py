"""Sweeps on a cluster: submission; with a real Slurm, cancelled, requeued and adopted jobs.

Run: pytest tests/test_slurm.py; pytest -m slow tests/test_slurm.py (needs slurm-wlm and munge)
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onenet.config.compose import compose
from onenet.config.options import SlurmOptions
from onenet.errors import UserError
from onenet.runs.folder import RunFolder
from onenet.runs.identity import run_id
from onenet.runs.request import Request
from onenet.sweeps import plan as planning
from onenet.sweeps import slurm
from onenet.sweeps.experiments import expand
from onenet.system.files import REPOSITORY
from tests.launchers import launcher_of
from tests.slurm_cluster import ask, missing, slurm_cluster

TINY = ["debug=tiny", "tracker=none", "hydra/launcher=slurm"]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A function that puts a fake Slurm command on the PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def install(name: str, script: str) -> None:
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return install


@pytest.fixture
def stand_ins(tools, tmp_path):
    """The folder where the fake sbatch stores its input."""
    pytest.importorskip("submitit")
    tools("srun", "")
    tools("squeue", f"cat {tmp_path}/queue 2>/dev/null || true")
    tools("sbatch", f'cat "$1" > {tmp_path}/submitted.sh; echo Submitted batch job 17')
    return tmp_path


def plan_run(tmp_path: Path, *overrides: str) -> planning.Run:
    specs = expand([*overrides, *TINY, f"runs_root={tmp_path / 'runs'}"])
    runs = planning.group(specs)
    planning.freeze(runs)
    return runs[0]


def start_run(run: planning.Run, *overrides: str) -> slurm.SlurmJob:
    launcher = launcher_of([*TINY, *overrides])
    (resources,) = launcher.resources(run.config, 1)
    return launcher.start(run, resources).handle


def submitted_command(tmp_path: Path) -> list[str]:
    (pickle,) = (tmp_path / "runs/.slurm").glob("*_submitted.pkl")
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission.load(pickle).function.command


def test_what_is_submitted_asks_for_what_the_keys_say(stand_ins):
    more = "hydra.launcher.more={account: vision, qos: high, signal_delay_s: 150}"
    options = ["partition=gpu", "minutes=90", "cpus=6", "gpus=2", "memory_gb=1.5"]
    run = plan_run(stand_ins)
    assert start_run(run, more, *[f"hydra.launcher.{word}" for word in options]).job == "17"
    script = (stand_ins / "submitted.sh").read_text()
    for option in (
        *("partition=gpu", "time=90", "cpus-per-task=6", "gpus-per-node=2", "mem=1536M"),
        *("account=vision", "qos=high", "signal=USR2@150", "requeue\n"),
        f"job-name={slurm.job_name(run.folder)}",
    ):
        assert f"#SBATCH --{option}" in script
    assert "--cpus-per-task=6 " in script.partition("srun")[2]
    assert f"export PYTHONPATH={REPOSITORY}" in script


@pytest.mark.parametrize(
    ("overrides", "processes", "threads"),
    [
        (["hydra.launcher.cpus=6"], 1, 6),
        (["processes=2", "hydra.launcher.cpus=6"], 2, 3),
        (["processes=null", "hydra.launcher.gpus=8", "batch=16"], 8, 1),
        (["processes=null", "hydra.launcher.gpus=8", "batch=4"], 4, 1),
        (["processes=null"], 1, 4),
    ],
)
def test_processes_and_threads_share_what_a_job_gets(overrides, processes, threads, stand_ins):
    run = plan_run(stand_ins, *overrides)
    start_run(run, *overrides)
    command = submitted_command(stand_ins)
    assert ("torch.distributed.run" in command) == (processes > 1)
    if processes > 1:
        assert command[command.index("--nproc-per-node") + 1] == str(processes)
    assert "--driver" not in command
    assert Request.read(Path(command[-1])).threads == threads


def test_all_runs_are_submitted_at_once_unless_jobs_says_otherwise(stand_ins):
    config = compose([*TINY, f"runs_root={stand_ins / 'runs'}"])
    for jobs, runs, at_a_time in ((None, 40, 40), (3, 40, 3), (3, 2, 2)):
        launcher = slurm.Slurm(SlurmOptions(cpus=1, gpus=0, jobs=jobs))
        assert len(launcher.resources(config, runs)) == at_a_time


def test_a_run_that_is_in_the_queue_is_not_submitted_again(stand_ins):
    run = plan_run(stand_ins)
    (stand_ins / "queue").write_text(f"23|{slurm.job_name(run.folder)}\n")
    assert start_run(run).job == "23"
    assert not (stand_ins / "submitted.sh").exists()
    elsewhere = RunFolder(stand_ins / "other" / run.name)
    assert slurm.job_name(elsewhere) != slurm.job_name(run.folder)


def test_a_job_ends_when_it_has_left_the_queue_and_its_run_says_how(stand_ins, monkeypatch):
    run = plan_run(stand_ins)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0)
    job = start_run(run)
    (stand_ins / "queue").write_text("17|some name\n")
    assert job.poll() is None
    (stand_ins / "queue").unlink()
    run.folder.set_status(state="running")
    assert job.poll() is None  # the result may not be visible yet
    run.folder.set_status(state="done")
    assert job.poll() == job.returncode == 0
    killed = start_run(run)
    run.folder.set_status(state="running")
    monkeypatch.setattr(slurm, "SYNC_SECONDS", 0)
    assert killed.poll() == 1


def test_a_queue_that_does_not_answer_ends_no_job(stand_ins, tools, monkeypatch):
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0)
    run = plan_run(stand_ins)
    (stand_ins / "queue").write_text("17|some name\n")
    job = start_run(run)
    run.folder.set_status(state="done")
    assert job.poll() is None
    tools("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    assert job.poll() is None


def test_nothing_is_submitted_while_the_queue_is_not_known(stand_ins, tools):
    tools("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(UserError, match="squeue does not answer"):
        start_run(plan_run(stand_ins))
    assert not (stand_ins / "submitted.sh").exists()


def test_where_a_run_takes_place_is_not_in_its_id():
    assert run_id(compose([*TINY, "hydra.launcher.more={qos: a}"])) == run_id(compose(TINY[:2]))


def test_what_slurm_refuses_ends_with_slurms_message(stand_ins, tools):
    tools("sbatch", "echo sbatch: error: invalid partition specified: gpu >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition specified: gpu"):
        start_run(plan_run(stand_ins), "hydra.launcher.partition=gpu")


def test_without_slurm_or_submitit_the_error_names_what_is_missing(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="needs sbatch"):
        launcher_of(TINY).resources(compose(TINY), 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[slurm\]'"):
        launcher_of(TINY).resources(compose(TINY), 1)


def test_further_options_must_be_a_mapping():
    with pytest.raises(UserError, match="more"):
        launcher_of([*TINY, "hydra.launcher.more=high"])


# --- with a real Slurm ---


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if names := missing():
        pytest.skip(f"not installed: {', '.join(names)} (apt install slurm-wlm munge)")
    pytest.importorskip("submitit")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


class Driver:
    """`python run.py` with these overrides, in the background."""

    def __init__(self, overrides: list[str], cluster: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "run.py"), "-m", *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **cluster},
        )

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=300)
        return self.process.returncode, output


@pytest.fixture
def drive(cluster):
    """A function that starts a Driver; none outlives its test."""
    drivers = []

    def start(overrides: list[str]) -> Driver:
        drivers.append(Driver(overrides, cluster))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def wait_for(condition, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def jobs(cluster: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Job id and state by job name."""
    lines = ask(["squeue", "--noheader", "--format=%j|%A|%T"], cluster).splitlines()
    return {name: (job, state) for name, job, state in (line.split("|") for line in lines)}


def restart_at_once(name: str, cluster: dict[str, str]) -> None:
    """Waits until the job is requeued, then skips Slurm's delay of two minutes."""
    wait_for(lambda: jobs(cluster)[name][1] == "PENDING")
    time.sleep(3)  # the node refuses it within the same second: "Job credential revoked"
    ask(["scontrol", "update", f"JobId={jobs(cluster)[name][0]}", "StartTime=now"], cluster)


def steps(folder: RunFolder) -> list[int]:
    lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_sweep_survives_a_preempted_job_and_the_end_of_its_driver(cluster, drive, tmp_path):
    overrides = ["seed=0,1,2,3", *TINY, "steps=80", "save_every=0", f"runs_root={tmp_path}"]
    overrides += ["hydra.launcher.cpus=1", "hydra.launcher.minutes=30"]
    folders = [spec.folder for spec in expand(overrides)]
    first = drive(overrides)
    name = slurm.job_name(folders[0])
    wait_for(lambda: folders[0].last_metrics().get("step", 0) >= 10)
    ask(["scancel", "--signal=USR2", jobs(cluster)[name][0]], cluster)
    restart_at_once(name, cluster)
    first.process.send_signal(signal.SIGINT)
    status, output = first.end()
    assert status == 75, output
    assert "scancel" in output
    assert name in jobs(cluster)
    status, output = drive(overrides).end()
    assert status == 0, output
    assert all(folder.state() == "done" for folder in folders)
    assert folders[0].status()["resumes"] >= 1
    assert all(steps(folder) == list(range(1, 81)) for folder in folders)
    assert len(list((tmp_path / ".slurm").glob("*_submitted.pkl"))) == 4  # each run once
    assert jobs(cluster) == {}


@pytest.mark.slow
def test_a_run_of_two_processes_makes_way_for_a_job_that_goes_first(cluster, drive, tmp_path):
    overrides = [*TINY, "processes=2", "steps=60", "save_every=0", f"runs_root={tmp_path}"]
    overrides += ["hydra.launcher.cpus=2", "hydra.launcher.minutes=30"]
    (spec,) = expand(overrides)
    driver = drive(overrides)
    wait_for(lambda: spec.folder.last_metrics().get("step", 0) >= 10)
    all_cores = ["--partition=high", f"--cpus-per-task={os.cpu_count()}", "--output=/dev/null"]
    ask(["sbatch", *all_cores, "--wrap=true"], cluster)
    restart_at_once(slurm.job_name(spec.folder), cluster)
    status, output = driver.end()
    assert status == 0, output
    assert spec.folder.status()["resumes"] == 1
    assert steps(spec.folder) == list(range(1, 61))
