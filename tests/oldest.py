"""Print the oldest version of each dependency that pyproject.toml allows, as constraints for pip: `numpy==1.26`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def oldest() -> list[str]:
    """Return a line for each dependency of difftool itself."""
    dependencies = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = [re.match(r"([\w-]+)>=([\w.]+)", line) for line in dependencies]
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    print(*oldest(), sep="\n")
