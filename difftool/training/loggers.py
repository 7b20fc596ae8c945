"""The loggers of a run. They are opened before training, and receive every row."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from difftool.components import Logger
from difftool.errors import DifftoolError, UsageError, blaming, describe, is_signal
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.specs import Row, RunContext

Log = Callable[["Row"], None]


def check_requirements(loggers: Sequence[Logger]) -> None:
    """Raise an error for a logger that is named twice, or whose library is not installed."""
    classes = [type(logger) for logger in loggers]
    for logger in loggers:
        if classes.count(type(logger)) > 1:  # its rows would go to the same place twice
            raise UsageError(f"logger {name_of(logger)}: named twice; name it once")
        for module, what in logger.requires.items():
            if not _is_there(module):
                reason = f"needs the module {module!r}, which is not installed: pip install {what!r}"
                raise DifftoolError(f"logger {name_of(logger)}: {reason}")


def _is_there(module: str) -> bool:
    """Return whether a module is installed. The package of a submodule is imported."""
    try:
        return find_spec(module) is not None
    except Exception:  # the package is not there, or not whole
        return False


class Loggers:
    """The open loggers of a run. One that fails is reported and dropped, and the run goes on."""

    def __init__(self, logs: Iterable[tuple[str, Log]], destinations: Sequence[str] = ()) -> None:
        self._logs = list(logs)
        self.destinations = destinations
        """Where the loggers write, such as `csv: runs/swiss-roll-mlp-001/logs`."""

    def __call__(self, row: Row) -> None:
        for one in [*self._logs]:
            name, log = one
            try:
                log(row)
            except BaseException as error:
                if is_signal(error):
                    raise
                self._logs = [other for other in self._logs if other is not one]
                _complain(name, f"failed at step {row.step} and is dropped", error)


@contextlib.contextmanager
def opened(loggers: Sequence[Logger], run: RunContext) -> Iterator[Loggers]:
    """Open loggers for a block, and close them however it ends. Raises `DifftoolError` if one cannot be opened."""
    with contextlib.ExitStack() as stack:
        logs = [(name_of(logger), stack.enter_context(_opened(logger, run))) for logger in loggers]
        yield Loggers(
            logs, [f"{name_of(logger)}: {place}" for logger in loggers if (place := _destination(logger, run))]
        )


def _destination(logger: Logger, run: RunContext) -> str:
    with blaming(f"logger {name_of(logger)}"):
        return str(logger.destination(run))


def name_of(logger: Logger) -> str:
    return registry().reference(type(logger))


@contextlib.contextmanager
def _opened(logger: Logger, run: RunContext) -> Iterator[Log]:
    name = name_of(logger)
    with blaming(f"logger {name}"):
        context = logger.open(run)
        if not hasattr(context, "__enter__"):
            raise ValueError(f"open() returned a {type(context).__name__}, not a context manager")
        log = context.__enter__()
    try:
        yield log
    finally:
        ending = sys.exc_info()
        try:
            context.__exit__(*ending)
        except BaseException as error:
            if is_signal(error):
                raise
            if error is not ending[1]:
                _complain(name, "could not be closed", error)


def _complain(name: str, what: str, error: BaseException) -> None:
    warnings.warn(f"logger {name} {what} ({describe(error)})", stacklevel=3)
