"""The loggers of a run: which, opened before it is trained, and told of every row."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from difftool.components import Logger
from difftool.errors import DifftoolError, InvalidOption, blaming
from difftool.plugins import registry
from difftool.validation import plain

if TYPE_CHECKING:
    from difftool.contracts import Row, RunContext

Log = Callable[["Row"], None]
TABLE = "loggers"
"""Of a config file: a table for each logger, by its name."""


def tables(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The options of each logger that a config file names. Raises `InvalidOption`."""
    found = document.get(TABLE, {})
    for name, options in found.items():
        if not isinstance(options, Mapping):
            raise InvalidOption(TABLE, f"{name} must be a table, [{TABLE}.{name}]")
    return dict(found)


def classes(names: Sequence[str]) -> dict[str, type[Logger]]:
    """The logger classes, each once. Raises `UsageError`."""
    return {name: registry().of_kind(Logger, name) for name in dict.fromkeys(names)}


def document_of(loggers: Sequence[Logger]) -> dict[str, dict[str, Any]]:
    """As `tables` reads them."""
    return {registry().reference(type(logger)): plain(logger) for logger in loggers}


def check_requirements(loggers: Sequence[Logger]) -> None:
    """Refuse, before anything is made, a logger whose library is not installed. Imports nothing."""
    for logger in loggers:
        for module, what in logger.requires.items():
            if find_spec(module) is None:
                raise DifftoolError(
                    f"logger {logger.name}: needs the module {module!r}, which is not installed: pip install {what!r}"
                )


class Loggers:
    """The open loggers of a run. One that fails is told and left out from then on; the run goes on."""

    def __init__(self, logs: Mapping[str, Log]) -> None:
        self._logs = dict(logs)

    def __call__(self, row: Row) -> None:
        for name, log in list(self._logs.items()):
            try:
                log(row)
            except Exception as error:
                del self._logs[name]
                _complain(name, f"failed at step {row.step} and is told no more", error)


@contextlib.contextmanager
def opened(loggers: Sequence[Logger], run: RunContext) -> Iterator[Loggers]:
    """Open them all, and close them when the run ends, however it does. Raises `DifftoolError` where one cannot be."""
    with contextlib.ExitStack() as stack:
        yield Loggers({logger.name: stack.enter_context(_opened(logger, run)) for logger in loggers})


@contextlib.contextmanager
def _opened(logger: Logger, run: RunContext) -> Iterator[Log]:
    try:
        with blaming(f"logger {logger.name}"):
            context = logger.open(run)
            if not hasattr(context, "__enter__"):
                raise ValueError(f"open() gave a {type(context).__name__}, no context")
            log = context.__enter__()
    except ValueError as error:
        raise DifftoolError(f"logger {logger.name}: {error}") from None
    try:
        yield log
    finally:
        ending = sys.exc_info()
        try:
            context.__exit__(*ending)
        except Exception as error:
            if error is not ending[1]:
                _complain(logger.name, "could not be closed", error)


def _complain(name: str, what: str, error: Exception) -> None:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    warnings.warn(f"logger {name} {what} ({text})", stacklevel=3)
