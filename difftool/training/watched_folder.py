"""The folder of a run while it trains, which somebody may move or empty."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from difftool.errors import DifftoolError
from difftool.files import sweep
from difftool.runs.folder import RunFolder


@dataclass
class WatchedFolder:
    """A run folder that is found again wherever it was moved to."""

    folder: RunFolder
    locked: Callable[[], RunFolder] = field(init=False)
    """Returns where the locked folder lies by now. The main process sets it."""
    describe: Callable[[RunFolder], None] = field(init=False)
    """Writes the configuration. The main process sets it."""

    def find(self) -> RunFolder:
        """Return the run folder for the next write, also if it was moved. Raises `DifftoolError` if it is gone.

        A folder never gets files without its configuration, so one whose content was moved gets it again.
        """
        if (found := self.locked()) != self.folder:
            warnings.warn(
                f"the run folder {self.folder.path} was moved; training goes on in {found.path}", stacklevel=3
            )
            self.folder = found
            sweep(found.path)
        if not found.config.exists():
            warnings.warn(f"{found.config} was removed; it is written again", stacklevel=3)
            self.describe(found)
        return found

    def write(self, write: Callable[[], None]) -> None:
        """Write files, and once more if the folder is moved meanwhile."""
        folder = self.find()
        try:
            write()
        except DifftoolError:
            if self.find() == folder:
                raise
            write()
