"""The benchmarks, by name. Each is a module here: its docstring is its title and what it compares, `run` measures."""

from __future__ import annotations

import importlib
import inspect
from typing import Protocol

from benchmarks.findings import Effort, Findings

NAMES = ("points", "tiny-images", "unet", "walk", "startup", "quality", "growth", "outcome", "gpu")
"""In the order of the page. The heaviest come in the middle, when caches are warm and nobody waits for a first line."""
ASKED_FOR = ("outcome", "gpu")
"""Those that are measured only where they are named: one takes hours, the other a GPU."""


class Benchmark(Protocol):
    """What a module of the suite offers."""

    def run(self, effort: Effort) -> Findings: ...


def load(name: str) -> tuple[Benchmark, str, str]:
    """(benchmark, title, what it compares). Raises `KeyError` for a name that is not in `NAMES`."""
    if name not in NAMES:
        raise KeyError(name)
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    title, _, about = (inspect.getdoc(module) or "").partition("\n\n")
    return module, title.removesuffix("."), about
