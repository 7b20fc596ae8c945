"""A virtual environment for one test: it sees the packages of this one, and installs others without the network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in."""

    python: Path
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Create the environment in an empty folder."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (site,) = (folder / "venv").glob("[lL]ib/**/site-packages")
        parents = [path for path in sys.path if path.endswith("site-packages")]
        (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in parents))
        work = folder / "work"
        work.mkdir()
        return cls(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python", work)

    def run(self, *words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `difftool ...`, `python ...`, `pytest ...` or `pip ...` there; it finds what is installed there.

        `source .venv/bin/activate` does nothing, for every program already comes from this environment.
        """
        if words == ("source", ".venv/bin/activate"):
            return subprocess.CompletedProcess(words, 0, "", "")
        here = {k: v for k, v in os.environ.items() if k != "DIFFTOOL_PLUGINS"}
        return subprocess.run(
            self._spelled([str(word) for word in words]),
            cwd=cwd or self.folder,
            env={**here, "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

    def check(self, *words: object, cwd: Path | None = None, **environment: str) -> str:
        """Run a command, fail unless it succeeds, and return what it wrote to stdout."""
        done = self.run(*words, cwd=cwd, **environment)
        assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """Return the command with the programs of this environment."""
        program, *rest = words
        if program == "pip":
            return [sys.executable, "-m", "pip", "--python", str(self.python), rest[0], *OFFLINE, *rest[1:]]
        modules = {
            "python": [],
            "difftool": ["-m", "difftool"],
            "torchrun": ["-m", "torch.distributed.run"],
            "pytest": ["-m", "pytest", "-q", "-p", "no:cacheprovider"],
        }
        assert program in modules, f"these tests do not know how to run {program}"
        isolated = ["--no-isolation"] if rest[:2] == ["-m", "build"] else []
        return [str(self.python), *modules[program], *rest, *isolated]
