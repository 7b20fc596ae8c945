"""Every failure that difftool foresees, and the exit code it ends with.

A message is one line: what is wrong, where (an option or a file), what to do. `difftool.cli.main` prints it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class DifftoolError(Exception):
    """The run failed for a reason that lies outside difftool."""

    exit_code = 1


class UsageError(DifftoolError):
    """What was asked for cannot be: a wrong option, name or combination."""

    exit_code = 2


class InvalidOption(UsageError):
    """A value that an option does not take.

    `field` names the option inside its record; `where` is filled in by whoever knows the spelling the user saw
    (`--backbone.dim`, or a key of a file).
    """

    def __init__(self, field: str, reason: str, *, where: str | None = None) -> None:
        self.field, self.reason, self.where = field, reason, where
        super().__init__(f"{where or field}: {reason}")


class UnknownComponent(UsageError):
    """No installed plugin provides a component of that name."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


class PluginFailure(DifftoolError):
    """The component that was asked for belongs to a plugin that was set aside."""


class BadFile(DifftoolError):
    """A file that is not what it should be."""


class Diverged(DifftoolError):
    """Loss or gradient became infinite or NaN."""


class PeerDied(DifftoolError):
    """Another of the processes that train together is gone, or has failed and says so itself."""


class Interrupted(DifftoolError):
    """A signal ended the run; everything was saved first."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Stopped(BaseException):
    """A signal ends the program. No `Exception`, so that nothing between here and `main` takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def is_signal(error: BaseException) -> bool:
    """Whether the user or the system ends the program, rather than code that raised what only they should.

    The command line's handlers raise `Stopped`; a `KeyboardInterrupt` is a real one under Python's own handler alone.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Stopped)


def reader_left(error: BaseException) -> bool:
    """Whether it is the exit that Typer and rich make of a closed pipe."""
    return isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; not all can be made text."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def describe(error: BaseException) -> str:
    """Class and text of an exception, on one line: `KeyError: 'x'`."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def blaming(what: str, *passing: type[Exception], refusal: type[DifftoolError] = DifftoolError) -> Iterator[None]:
    """Report what a component's own code raises on one line that names the component (`sampler ddim`).

    A component refuses by raising `ValueError`, which becomes a `refusal`. `DifftoolError` says enough already, running
    out of memory is nobody's fault, and exceptions of the classes in `passing` are for the caller to report.
    """
    try:
        yield
    except (DifftoolError, MemoryError, GeneratorExit):  # the last: a generator around this is closed
        raise
    except BaseException as error:
        if isinstance(error, passing) or is_signal(error) or reader_left(error) or out_of_memory(error):
            raise
        if isinstance(error, ValueError):
            raise refusal(f"{what}: {one_line(error)}") from error
        raise DifftoolError(f"{what} failed: {describe(error)}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of whatever device, ran out: libraries say so in different classes."""
    text = one_line(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


OUT_OF_MEMORY = "out of memory{}; a smaller --batch-size, a smaller network or --precision bf16 need less"


@contextlib.contextmanager
def spending(batch_size: int) -> Iterator[None]:
    """Memory that runs out becomes one line that says what was tried."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DifftoolError) or not out_of_memory(error):
            raise
        raise DifftoolError(OUT_OF_MEMORY.format(f" with {batch_size} items at once")) from error


def reader_died(error: BaseException) -> bool:
    """Whether a process that read data ended by itself; torch says so in words alone."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def printable(text: str) -> str:
    """Text on one line without control characters: names in files and metadata must not reach the terminal raw."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
