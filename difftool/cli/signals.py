"""Signals end the program without a traceback, with exit code 128 + number, or 75 if the same command goes on.

During training the first signal is only noted, so that the step can be finished and saved (`Signals.deferred`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from difftool.distributed import world
from difftool.errors import TRY_AGAIN, Stopped

URGENT = ("SIGINT", "SIGTERM", "SIGHUP")
"""The signals of people and systems that want the program to end. The second of them ends it at once."""
EARLY = ("SIGUSR1", "SIGUSR2", "SIGXCPU")
"""The signals by which queues announce the end. They may come again and again, and do not end a run that is saving."""

QUEUES = ("SIGTERM", *EARLY)
"""The signals by which queues end a job."""


class Signals:
    """The handler of signals. The first signal can be deferred; the next one ends the program."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal that arrived."""
        self.repeatable = False
        """True once it is known that the same command, given again, goes on where this one ends."""
        self._urgent = False
        self._deferred = False
        self._ignored = False
        self._process = os.getpid()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Handle signals in a block.

        A signal that was ignored before (`nohup`, a background job) still is, and one with another handler keeps it.
        """
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
            yield
            return
        wanted = [getattr(signal, name) for name in (*URGENT, *EARLY) if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in wanted}
        ours = [number for number in wanted if before[number] in (signal.SIG_DFL, signal.default_int_handler)]
        self.number, self.repeatable, self._urgent, self._process = None, False, False, os.getpid()
        for number in ours:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, signal.SIG_IGN if self._ignored else before[number])

    def exit_code(self, number: int) -> int:
        """Return the exit code of a program that this signal ends. Queues send some to jobs that are to begin again."""
        again = self.repeatable and signal.Signals(number).name in QUEUES
        return TRY_AGAIN if again else 128 + number

    def ignore(self) -> None:
        """Ignore all signals from here on, since the program ends anyway."""
        self._ignored = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note the first signal in a block as `number`; the code in the block ends in its own time."""
        self._deferred = True
        try:
            yield
        except Exception:
            if world().size > 1:
                self.ignore()
            raise
        finally:
            self._deferred = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._ignored or os.getpid() != self._process:  # the latter in a child that was just forked
            return
        first, urgent = self.number is None, signal.Signals(number).name in URGENT
        self.number, again = self.number or number, self._urgent
        self._urgent |= urgent
        if self._deferred and not (urgent and again):
            if world().size > 1 or not first:  # the processes have yet to agree on a step
                return
            with contextlib.suppress(Exception):  # the log may be full, closed, or just being written to
                from difftool.cli.console import note

                note(f"{signal.Signals(number).name}: stopping after this step; once more stops at once")
            return
        torch_spec = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(torch_spec, "_initializing", False):  # its C++ code would turn the exception into another error
            os._exit(self.exit_code(number))
        raise Stopped(number, self.exit_code(number))


signals = Signals()
"""The signals of this process."""
