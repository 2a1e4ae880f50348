"""A one-node Slurm cluster for tests, on this machine, in its own folder.

Needs the Debian packages slurm-wlm and munge; no systemd, accounting or Slurm settings.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MailProg=/bin/true
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The daemons that are not installed."""
    return [name for name in DAEMONS if not shutil.which(name, path=SYSTEM_PATH)]


@contextlib.contextmanager
def slurm_cluster(root: Path) -> Iterator[dict[str, str]]:
    """Starts the cluster, yields the environment for its clients, and stops it.

    `root`: an empty folder; its path must be short for the socket. Raises RuntimeError with the
    end of the log if the node does not start.
    """
    environment = {"SLURM_CONF": f"{root}/slurm.conf", "PATH": SYSTEM_PATH}
    (root / "munge.key").write_bytes(os.urandom(1024))
    (root / "munge.key").chmod(0o600)
    (root / "slurm.conf").write_text(configuration(root))
    files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munged = [f"--{option}={root}/munge.{end}" for option, end in files.items()]
    try:
        start(["munged", "--force", *munged, f"--key-file={root}/munge.key"], environment)
        start(["slurmctld", "-i"], environment)
        start(["slurmd"], environment)
        wait_until_idle(root, environment)
        yield environment
    finally:
        stop(root, environment)


def configuration(root: Path) -> str:
    controller_port, node_port = free_ports(2)
    return CONF.format(
        root=root,
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        controller_port=controller_port,
        node_port=node_port,
        cpus=os.cpu_count(),
        megabytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10 // 2**20,
    )


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def start(command: list[str], environment: dict[str, str]) -> None:
    """Starts a daemon and returns once it is in the background."""
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=30)


def wait_until_idle(root: Path, environment: dict[str, str], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while "idle" not in ask(["sinfo", "--noheader", "--format=%t"], environment):
        if time.monotonic() > deadline:
            logs = [file.read_text()[-1000:] for file in root.glob("slurm*.log")]
            raise RuntimeError("Slurm's node is not idle.\n" + "\n".join(logs))
        time.sleep(0.2)


def ask(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout


def stop(root: Path, environment: dict[str, str]) -> None:
    """Cancels all jobs, then stops the daemons by their PID files."""
    if (root / "slurmctld.pid").is_file():
        ask(["scancel", "--me"], environment)
        deadline = time.monotonic() + 20
        while ask(["squeue", "--noheader"], environment) and time.monotonic() < deadline:
            time.sleep(0.2)
    for name in ("slurmd", "slurmctld", "munge"):
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((root / f"{name}.pid").read_text()), signal.SIGTERM)
