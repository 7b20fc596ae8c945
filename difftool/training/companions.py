"""The components that accompany a run: loggers and callbacks. They are opened before training, and see every row."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from difftool.components import Companion, Component, Logger
from difftool.errors import DifftoolError, UsageError, blaming, describe, is_signal
from difftool.plugins.registry import registry

if TYPE_CHECKING:
    from difftool.specs import Row, RunContext

Function = Callable[[Any], Any]
"""The function that an open companion gave, to call with each row or its progress."""


def check_requirements(companions: Sequence[Component]) -> None:
    """Raise an error for a companion that is named twice, or whose library is not installed."""
    classes = [type(companion) for companion in companions]
    for companion in companions:
        if classes.count(type(companion)) > 1:  # the rows of two loggers would go to the same place
            raise UsageError(f"{name_of(companion)}: named twice; name it once")
        for module, what in getattr(companion, "requires", {}).items():
            if not _is_there(module):
                reason = f"needs the module {module!r}, which is not installed: pip install {what!r}"
                raise DifftoolError(f"{name_of(companion)}: {reason}")


def _is_there(module: str) -> bool:
    """Return whether a module is installed. The package of a submodule is imported."""
    try:
        return find_spec(module) is not None
    except Exception:  # the package is not there, or not whole
        return False


class Companions:
    """The open companions of a run. One that fails is reported and dropped, and the run goes on."""

    def __init__(self, functions: Sequence[tuple[str, Function]] = ()) -> None:
        self._functions = list(functions)

    def call(self, step: int, use: Callable[[str, Function], None]) -> None:
        """Call `use` with the name and the function of each companion."""
        for one in [*self._functions]:
            try:
                use(*one)
            except BaseException as error:
                if is_signal(error):
                    raise
                self._functions = [other for other in self._functions if other is not one]
                _complain(one[0], f"failed at step {step} and is dropped", error)


class Loggers(Companions):
    """The open loggers of a run."""

    def __call__(self, row: Row) -> None:
        self.call(row.step, lambda _, log: log(row))


@contextlib.contextmanager
def opened(companions: Sequence[Companion], run: RunContext) -> Iterator[list[tuple[str, Function]]]:
    """Open companions for a block, and close them however it ends. Raises `DifftoolError` if one cannot be opened."""
    with contextlib.ExitStack() as stack:
        yield [(name_of(one), stack.enter_context(_opened(one, run))) for one in companions]


def destinations(loggers: Sequence[Logger], run: RunContext) -> list[str]:
    """Return where loggers write, such as `csv: runs/swiss-roll-mlp-001/logs`."""
    return [
        f"{registry().reference(type(logger))}: {place}" for logger in loggers if (place := _destination(logger, run))
    ]


def _destination(logger: Logger, run: RunContext) -> str:
    with blaming(name_of(logger)):
        return str(logger.destination(run))


def name_of(companion: Component) -> str:
    """Return kind and name, such as `logger csv`."""
    return f"{companion.kind} {registry().reference(type(companion))}"


@contextlib.contextmanager
def _opened(companion: Companion, run: RunContext) -> Iterator[Function]:
    name = name_of(companion)
    with blaming(name):
        context = companion.open(run)
        if not hasattr(context, "__enter__"):
            raise ValueError(f"open() returned a {type(context).__name__}, not a context manager")
        function = context.__enter__()
    try:
        yield function
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
    warnings.warn(f"{name} {what} ({describe(error)})", stacklevel=3)
