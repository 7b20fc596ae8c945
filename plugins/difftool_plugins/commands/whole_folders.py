"""Folders that commands write whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` at the end, or vanishes after an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder = temporary / "folder"  # mkdtemp gives no rights to others
    try:
        folder.mkdir()
        yield folder
        os.rename(folder, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
