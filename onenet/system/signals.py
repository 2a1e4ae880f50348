"""Being asked to stop: by a signal, or because the sweep that started the run is gone."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# SIGUSR1 and SIGUSR2 are what Slurm and submitit send before they take a machine away.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
EXIT_STATUS = 75  # "try again later"; Slurm's RequeueExit
LAST_SECONDS = 4.0  # for a run whose sweep is gone


class Preempted(BaseException):
    """Raised where a run can be stopped. No failure: the same command goes on with it."""


class StopRequest:
    """What the handlers of SIGNALS leave. Outside `deferred` a signal raises Preempted at once.

    `once`: those after the first do nothing. A process group that is asked to stop asks its runs
    twice, and the second time must not disturb the writing down.
    """

    def __init__(self, once: bool = False):
        self.reason: str | None = None
        self._once, self._deferred = once, False

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._received)

    def note_only(self) -> None:
        """From here on signals disturb nothing: the run ends anyway."""
        self._deferred = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals are only noted: whoever is inside looks at `reason` and stops by himself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.reason:
            raise Preempted(self.reason)

    def _received(self, number: int, _frame) -> None:
        if self._once and self.reason:
            return
        self.reason = signal.Signals(number).name
        if not self._deferred:
            raise Preempted(self.reason)


def end_with_driver() -> None:
    """Has this process stop when the one that holds the other end of its standard input is gone.

    It is asked to, as by SIGTERM, and ends after LAST_SECONDS in any case.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_SECONDS)
        os._exit(EXIT_STATUS)

    threading.Thread(target=wait, daemon=True).start()
