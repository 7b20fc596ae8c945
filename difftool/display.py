"""Objects that notebooks show as pictures. Importing this module imports nothing heavy."""

from __future__ import annotations

from importlib import import_module


class Displayed:
    """An object that a notebook shows as the picture that `difftool.pictures` draws of it."""

    def _repr_png_(self) -> bytes | None:
        # found by its name when a notebook needs it: figures lie above the objects that they show
        png: bytes | None = import_module("difftool.pictures").png_of(self)
        return png
