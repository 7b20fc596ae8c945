"""The names of averages of the weights, and their files in the folder `averages/` of a run.

ema-0.9999.safetensors                    an average that the model file does not hold, after the newest step saved
power-0.05.safetensors                    a power-function average, likewise
power-0.05-step-000001250.safetensors     a snapshot of it, for averages of other lengths
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from difftool.settings import LONGEST, SHORTEST, Training

FILE = re.compile(r"((?:ema|power)-[\d.e-]{1,40}?)(?:-step-(\d{9,10}))?\.safetensors", re.ASCII)


def ema_name(decay: float) -> str:
    """Return the name of an exponential moving average: `ema-0.999`."""
    return f"ema-{decay}"


def power_name(length: float) -> str:
    """Return the name of a power-function average: `power-0.05`."""
    return f"power-{length}"


def names_of(settings: Training) -> list[str]:
    """Return the names of the averages of a run, in the order in which its states hold them."""
    return [*(ema_name(decay) for decay in settings.ema if decay), *map(power_name, settings.ema_lengths)]


def canonical(name: str) -> str | None:
    """Return the name of an average as difftool writes it, `ema-0.999` for `ema-.9990`; None for any other text."""
    kind, _, number = name.partition("-")
    try:
        value = float(number)
    except ValueError:
        return None
    if kind == "power":
        return power_name(value) if SHORTEST <= value <= LONGEST else None
    return ema_name(value) if kind == "ema" and 0.0 < value < 1.0 else None


@dataclass(frozen=True)
class AverageFile:
    """A file of an average, as its name describes it."""

    path: Path
    name: str
    step: int | None
    """The step of a snapshot; None for the file that is replaced whenever the run is saved."""

    @property
    def length(self) -> float | None:
        """The length of a power-function average; None for another average."""
        return float(self.name.removeprefix("power-")) if self.name.startswith("power-") else None


def file_of(folder: Path, name: str, step: int | None = None) -> Path:
    """Return the path of an average, or of its snapshot after a step."""
    return folder / (f"{name}.safetensors" if step is None else f"{name}-step-{step:09d}.safetensors")


def files_in(folder: Path) -> list[AverageFile]:
    """Return the files of averages in a folder, by name and step."""
    found = []
    for path in folder.glob("*.safetensors"):
        match = FILE.fullmatch(path.name)
        if match and canonical(match[1]) == match[1]:
            found.append(AverageFile(path, match[1], None if match[2] is None else int(match[2])))
    return sorted(found, key=lambda file: (file.name, file.step or 0))
