"""Arguments and options that several commands take, and the checks that need more than the value itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from difftool.cli.console import help_text
from difftool.errors import DifftoolError, UsageError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="NAME")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
FigureJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and draw a figure only if --out names one.")
]
Images = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[IMAGE]...", help="Your own images, instead of items of a dataset."),
]


def out_option(text: str, default: str) -> Any:
    """Return the option `--out` for figures, with a note on the path that is taken without it."""
    return typer.Option(metavar="FILE", help=help_text(text, f"default: {default}"))


def check_images(paths: Sequence[Path]) -> None:
    """Raise `DifftoolError` unless every image is a file."""
    for path in paths:
        if not path.is_file():
            raise DifftoolError(f"image {path} {'is not a file' if path.exists() else 'does not exist'}")


def check_levels(at: Sequence[int], timesteps: int) -> None:
    """Raise `UsageError` if a level lies beyond the last one, T-1."""
    for t in at:
        if t >= timesteps:
            raise UsageError(f"--at: {t} is beyond the last level, {timesteps - 1}")
