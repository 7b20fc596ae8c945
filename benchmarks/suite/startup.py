"""How long until the first line.

A fresh process each time: `difftool --help` beside the least app that one can write with Typer, and beside what it
takes to import diffusers and to ask accelerate for its help.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.findings import Comparison, Effort, Findings, Table, at_most
from benchmarks.measuring import Contest, repeated

BARE_APP = Path(__file__).resolve().parents[1] / "bare_app.py"
OURS, BARE = "difftool --help", "a bare Typer app's --help"
IMPORT, ACCELERATE = "import diffusers", "accelerate --help"


def run(effort: Effort) -> Findings:
    with tempfile.TemporaryDirectory() as folder:
        entries = contest(Path(folder))
        measured = entries.run(warmup=1, steps=1, rounds=effort(15, 3))
    table = Table(
        title="A process from start to end",
        unit="s",
        values=measured.times,
        comparisons=[
            Comparison(OURS, BARE, at_most(1.5)),
            Comparison(IMPORT, OURS),
            Comparison(ACCELERATE, OURS),
        ],
    )
    return Findings([table], entries.notes)


def contest(folder: Path) -> Contest:
    entries = Contest()
    python = partial(process, folder)
    entries.add(BARE, lambda: repeated(python(str(BARE_APP), "--help")))
    entries.add(OURS, lambda: repeated(python("-m", "difftool", "--help")))
    entries.add(IMPORT, lambda: repeated(python("-c", "import diffusers")), needs=("diffusers",))
    entries.add(
        ACCELERATE,
        lambda: repeated(python("-m", "accelerate.commands.accelerate_cli", "--help")),
        needs=("accelerate",),
    )
    return entries


def process(folder: Path, *words: str) -> partial[object]:
    """A call of this interpreter with these words, in a folder where nothing of ours lies."""
    return partial(subprocess.run, [sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
