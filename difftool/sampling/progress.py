"""Progress in network calls, which are known before any sample is drawn, but for samplers of adaptive steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from difftool.diffusion.estimate import Step


class CallCount:
    """The network calls that are done, of one batch each. No work counts for more than was planned."""

    def __init__(self) -> None:
        self.done = 0

    @contextlib.contextmanager
    def work(self, planned: int, watch: Callable[[], object]) -> Iterator[Callable[[Step], None]]:
        """Yield a function that counts the calls of each step in the block, and then calls `watch`.

        A sampler that needs more calls than were planned stays at these, and one that needs fewer has made all of them
        at the end of the block.
        """
        start, made, before = self.done, 0, 0

        def count(step: Step) -> None:
            nonlocal made, before
            made += step.calls - before if step.number else 0
            before = step.calls if step.number and not step.done else 0
            self.done = start + min(made, planned)
            watch()

        yield count
        self.done = start + planned
