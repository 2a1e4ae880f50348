"""Requests to stop: by a signal, or because the sweep that started the run is gone."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# Slurm and submitit send SIGUSR1 and SIGUSR2 before they take the machine away.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
EXIT_STATUS = 75  # "try again later"; Slurm's RequeueExit
GRACE_SECONDS = 4.0  # for a run to stop after its sweep is gone


class Preempted(BaseException):
    """Raised where a run can be stopped. Not a failure: the same command resumes the run."""


class StopRequest:
    """Records the signal that asked to stop. Outside `defer`, a signal raises Preempted at once.

    `once`: signals after the first do nothing. If a whole process group is signalled, its runs get
    a second signal from their sweep, which must not interrupt their last writes.
    """

    def __init__(self, once: bool = False):
        self.reason: str | None = None
        self._once, self._deferred = once, False

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def defer_forever(self) -> None:
        """Makes all later signals only set `reason`, because the run is ending anyway."""
        self._deferred = True

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        """Makes signals only set `reason` inside the block, which checks it and stops by itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.reason:
            raise Preempted(self.reason)

    def _handle(self, number: int, _frame) -> None:
        if self._once and self.reason:
            return
        self.reason = signal.Signals(number).name
        if not self._deferred:
            raise Preempted(self.reason)


def stop_with_parent() -> None:
    """Stops this process when the one that holds the other end of its standard input is gone.

    Sends SIGTERM first, and ends the process after GRACE_SECONDS in any case.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(EXIT_STATUS)

    threading.Thread(target=wait, daemon=True).start()
