"""A callback that does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from difftool import Callback

if TYPE_CHECKING:
    from difftool import Progress, RunContext


class Nothing(Callback, name="none"):
    """No callback. It replaces the callbacks of a run that is resumed."""

    @contextlib.contextmanager
    def open(self, run: RunContext) -> Iterator[Callable[[Progress], None]]:
        yield lambda _: None
