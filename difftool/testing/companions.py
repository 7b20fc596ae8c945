"""What the laws of loggers and of callbacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from difftool.components import Companion
from difftool.specs import RunContext
from difftool.testing.laws import Failed


@contextmanager
def opened(companion: Companion, run: RunContext) -> Iterator[Callable[[Any], Any]]:
    """Open a logger or callback for a block, and give its function. Raises `Failed` if it opens nothing to call."""
    context = companion.open(run)
    if not isinstance(context, AbstractContextManager):
        raise Failed(
            f"open() returned a {type(context).__name__}, not a context; put @contextlib.contextmanager above it"
        )
    with context as function:
        if not callable(function):
            raise Failed(f"its context gave a {type(function).__name__}, not a function to call with each row")
        yield function
