"""A virtual environment for one test: it sees the packages of this one, and installs others without the network."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 300
"""Seconds that a command may take."""
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")


FORKS = """
import atexit, gc, importlib, json, os, runpy, sys, threading, traceback, types
import matplotlib.figure, matplotlib.backends.backend_agg
import numpy, PIL.Image, pluggy, pydantic, rich.progress, rich.table, torch, typer.main

def work(job):
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    for number, path in enumerate(("/dev/null", job["out"], job["err"])):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    option, what, *rest = job["words"]
    sys.argv, sys.path[0] = [option, *rest], "" if option == "-c" else os.getcwd()
    code = 0
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec", dont_inherit=True), main.__dict__)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    for name in job["modules"]:
        importlib.import_module(name)
    gc.freeze()
    if (pid := os.fork()) == 0:
        work(job)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""A program that imports the libraries which take long, and forks for each job. A job is a process of its own, which
imports difftool and all packages anew."""

BUILD = """
import os, sys
from hatchling.build import build_wheel
for folder in sys.argv[2:]:
    os.chdir(folder)
    build_wheel(sys.argv[1])
"""
"""A program that builds the wheels of the packages in some folders into the first one."""


@dataclass
class Forks:
    """The test's end of `FORKS`."""

    process: subprocess.Popen[str]
    folder: Path
    jobs: int = 0
    modules: Sequence[str] = ()
    """Further modules that take long to import, and that jobs have from now on."""

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `-m MODULE ...` or `-c CODE`, and return what a new process of Python would."""
        self.jobs += 1
        out, err = (self.folder / f"{self.jobs}.{name}" for name in ("out", "err"))
        job = {"words": [*words], "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        job["modules"] = [*self.modules]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        ended, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ended, f"{' '.join(words)} does not end"
        code = int(self.process.stdout.readline())
        return subprocess.CompletedProcess([*words], code, out.read_text(), err.read_text())


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in."""

    python: Path
    folder: Path
    forks: list[Forks] = field(default_factory=list)
    """The process that forks in place of starting Python, if there is one."""

    @classmethod
    def make(cls, folder: Path) -> Environment:
        """Create the environment in a folder."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (site,) = (folder / "venv").glob("[lL]ib/**/site-packages")
        parents = [path for path in sys.path if path.endswith("site-packages")]
        (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in parents))
        (folder / "work").mkdir()
        return cls.of(folder)

    @classmethod
    def of(cls, folder: Path) -> Environment:
        """Return the environment that was created in a folder."""
        return cls(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python", folder / "work")

    def install(self, *packages: Path) -> None:
        """Install packages of hatchling: one process builds their wheels, where pip would start several for each."""
        (site,) = self.python.parents[1].glob("[lL]ib/**/site-packages")
        with tempfile.TemporaryDirectory() as place:
            self.check("python", "-c", BUILD, place, *(package.resolve() for package in packages))
            for wheel in Path(place).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(site)

    def run(self, *words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `difftool ...`, `python ...`, `pytest ...` or `pip ...` there; it finds what is installed there.

        `source .venv/bin/activate` does nothing, for every program already comes from this environment.
        """
        if words == ("source", ".venv/bin/activate"):
            return subprocess.CompletedProcess(words, 0, "", "")
        here = {k: v for k, v in os.environ.items() if k != "DIFFTOOL_PLUGINS"}
        spelled, env = self._spelled([str(word) for word in words]), {**here, **NO_BYTECODE, **environment}
        if self.forks and spelled[0] == str(self.python) and spelled[1] in ("-m", "-c") and words[0] != "torchrun":
            return self.forks[0].run(spelled[1:], cwd or self.folder, env)
        return subprocess.run(
            spelled,
            cwd=cwd or self.folder,
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
        )

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """Fork for each run of Python in this block, in place of importing torch again.

        Nothing may depend on torch not being imported, nor on what Python reads from the environment when it starts.
        """
        with (
            tempfile.TemporaryDirectory() as place,
            subprocess.Popen(
                [self.python, "-c", FORKS], env={**os.environ, **NO_BYTECODE}, stdin=-1, stdout=-1, text=True
            ) as process,
        ):
            self.forks.append(Forks(process, Path(place)))
            try:
                yield
            finally:
                self.forks.clear()
                process.kill()

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
