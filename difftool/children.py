"""Python processes that this one starts: workers that read data, compilers, and helpers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

SAFE_PATH = "PYTHONSAFEPATH"
"""The variable by which Python leaves the current folder out of its module path."""


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Keep Python processes that are started in this block from taking modules from the current folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
