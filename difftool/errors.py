"""The failures that difftool foresees, with their exit codes.

A message is one line: what is wrong, where (an option or a file), and what to do. `difftool.cli.main` prints it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence


class DifftoolError(Exception):
    """A failure whose cause lies outside difftool."""

    exit_code = 1


class UsageError(DifftoolError):
    """The request is invalid: an unknown option or name, or a bad combination."""

    exit_code = 2


class InvalidOption(UsageError):
    """An option does not take this value.

    `field` is the name of the option in its record. `where` is the spelling that the user sees, such as
    `--backbone.dim` or a key of a file; the code that knows it fills it in.
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
    """The component belongs to a plugin that was set aside."""


class BadFile(DifftoolError):
    """A file does not hold what it should."""


class Diverged(DifftoolError):
    """The loss, the gradient or samples became infinite or NaN."""


class PeerDied(DifftoolError):
    """Another process of this run failed or was killed."""


TRY_AGAIN = 75
"""The exit code (EX_TEMPFAIL of sysexits.h) of a run that ended in good order before its last step, and goes on."""


class Interrupted(DifftoolError):
    """A signal or the end of its time ended the run, after everything was saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(BaseException):
    """A signal ends the program. It is not an `Exception`, so that no code on the way to `main` handles it."""

    def __init__(self, number: int, exit_code: int | None = None) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number if exit_code is None else exit_code


def is_signal(error: BaseException) -> bool:
    """Return whether an exception comes from a signal.

    The handlers of the command line raise `Stopped`. A `KeyboardInterrupt` comes from a signal only under Python's own
    handler; otherwise the code of a plugin raised it.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, Stopped)


def reader_left(error: BaseException) -> bool:
    """Return whether Typer or rich exits because the reader of a pipe is gone."""
    return isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)


def one_line(error: BaseException) -> str:
    """Return the text of an exception on one line, empty if it cannot be made."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def describe(error: BaseException) -> str:
    """Return class and text of an exception on one line: `KeyError: 'x'`."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def blaming(what: str, *passing: type[Exception], refusal: type[DifftoolError] = DifftoolError) -> Blame:
    """Turn exceptions from a component's own code into errors that name the component, such as `sampler ddim`.

    A component refuses values by raising `ValueError`, which becomes a `refusal`; other exceptions become a
    `DifftoolError`. A `DifftoolError`, a lack of memory, signals, and the classes in `passing` are left as they are.
    """
    return Blame(what, passing, refusal)


class Blame:
    """The context that `blaming` returns: a class, since each step of a training enters several."""

    __slots__ = ("passing", "refusal", "what")

    def __init__(self, what: str, passing: tuple[type[Exception], ...], refusal: type[DifftoolError]) -> None:
        self.what, self.passing, self.refusal = what, passing, refusal

    def __enter__(self) -> None:
        """Change nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        # GeneratorExit closes a generator around the block
        if error is None or isinstance(error, (DifftoolError, MemoryError, GeneratorExit, *self.passing)):
            return
        if is_signal(error) or reader_left(error) or out_of_memory(error):
            return
        if isinstance(error, ValueError):
            raise self.refusal(f"{self.what}: {one_line(error)}") from error
        raise DifftoolError(f"{self.what} failed: {describe(error)}") from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of any device ran out. Libraries raise different classes for it."""
    text = one_line(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


NO_MEMORY = (
    *("out of memory", "can't allocate", "cannot allocate", "unable to allocate", "bad_alloc", "bad allocation"),
    *("failed to map segment", "can't start new thread"),  # a shared library or a stack that found no room
)
"""Words of libraries that found no memory, or no more of it below a limit such as that of `ulimit -v`."""
LONGEST_LINE = 2_000
"""Characters of a line of output, or of a cell of a table, since either may hold text from a file."""
OUT_OF_MEMORY = "out of memory{}; a smaller --batch-size, a smaller network or --precision bf16 need less"


@contextlib.contextmanager
def spending(batch_size: int) -> Iterator[None]:
    """Turn a lack of memory into an error that names the batch size, and that of a reader of data into one as well."""
    try:
        yield
    except Exception as error:
        if reader_died(error):
            import multiprocessing

            guard = "" if multiprocessing.get_start_method() == "fork" else GUARD
            raise DifftoolError(READER_DIED + guard) from error
        if isinstance(error, DifftoolError) or not out_of_memory(error):
            raise
        raise DifftoolError(OUT_OF_MEMORY.format(f" with {batch_size} items at once")) from error


READER_DIED = "a process that reads data was killed, perhaps because memory ran out; try --workers 0"
GUARD = '; a script must call difftool below `if __name__ == "__main__":`, since such processes run it again'


def check_main_guard() -> None:
    """Raise `UsageError` in a worker process that runs the script which has started it."""
    import multiprocessing

    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing asks itself
        raise UsageError("a worker process runs this script again" + GUARD)


def reader_died(error: BaseException) -> bool:
    """Return whether a process that reads data was killed. torch has no class of error for it."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def printable(text: str) -> str:
    """Escape control characters, also line breaks, in a text from a file before it reaches the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 option`, `3,000 options`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Return words as a list: `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters: the middle of a longer one is left out."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 5]}[...]{text[-end:]}"
