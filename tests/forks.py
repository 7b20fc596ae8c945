"""Processes that begin in milliseconds: one server imports torch, and forks for each job."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NoReturn

import paper_losses
from conftest import POINTS, Outcome, invoke

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 138, "SIGXCPU": 152}
SIGNALS = {number: code for name, code in CODES.items() if (number := getattr(signal, name, None)) is not None}
"""The signals that stop a run in good order, with the exit code of each. Windows has two of them."""
PATIENCE = 120
"""Seconds until a process that does not get on fails its test."""

# A process that trains takes seconds to import torch, and milliseconds to die. So one server imports everything, and
# forks for each job a process that is as real as any other: it has a number, a group, locks and workers of its own.

DISTRIBUTED = ("torch._dynamo", "torch.distributed.fsdp")
"""The modules that DistributedDataParallel and `fully_shard` import."""

Job = Callable[[], object]
"""The work of a forked process; it travels to the server by its name."""


def serve(descriptor: int, *modules: str) -> None:
    """Fork for each job that comes in. Send its process number when it begins, and its exit code when it has ended.

    The jobs know the losses of `paper_losses`, as if their package were installed.
    """
    with paper_losses.installed():
        serve_jobs(descriptor, modules)


def serve_jobs(descriptor: int, modules: Sequence[str]) -> None:
    invoke("train", *POINTS, "--steps", 1, "--out", "warm")  # for what is imported late
    for module in modules:
        importlib.import_module(module)
    gc.freeze()
    connection = Connection(descriptor)
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            job, streams = connection.recv()
            if (pid := os.fork()) == 0:
                _work(job, streams)
            connection.send(pid)
            connection.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _work(job: Job, streams: Path) -> NoReturn:
    """Do a job in a process group of its own, its output in two files."""
    os.setpgid(0, 0)
    for signalled in SIGNALS:  # tests in the background or under nohup ignore some
        signal.signal(signalled, signal.SIG_DFL)
    for number, path in enumerate((os.devnull, f"{streams}.out", f"{streams}.err")):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    finish(job)


def finish(job: Job) -> NoReturn:
    """Do a job, and end this process with its exit code."""
    code: object = 0
    try:
        job()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 99
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)  # to take torch apart would cost a second


def as_ranks(size: int, port: int, words: Sequence[str], befores: Mapping[int, Job]) -> None:
    """Run the command line in `size` processes as torchrun does, which ends all when one has failed, with its code.

    `befores` are done first, by the processes of these ranks.
    """
    from difftool.cli.main import main

    running = set()
    for rank in range(size):
        if (pid := os.fork()) == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update({"MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1"})
            finish(lambda rank=rank: (befores.get(rank, int)(), main([*words])))  # type: ignore[misc]
        running.add(pid)
    first = 0
    while running:
        pid, status = os.wait()
        running.remove(pid)
        if status and not first:
            first = os.waitstatus_to_exitcode(status)
            time.sleep(1)  # the others have a line of their own to say
            for other in running:
                os.kill(other, signal.SIGTERM)
    sys.exit(first)


class Server:
    """The test's end of `serve`. Jobs have some modules already that take long to import."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.connection, other = Pipe()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"import forks; forks.serve{(other.fileno(), *modules)}"],
                pass_fds=[other.fileno()],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parent),
                    "XDG_CACHE_HOME": str(folder / "cache"),
                    "TORCH_CPP_LOG_LEVEL": "ERROR",  # the command line sets it among several processes, before torch
                },
                stdout=subprocess.DEVNULL,
            )
        assert self.connection.poll(PATIENCE)
        assert self.connection.recv() == "ready"
        self.child: Child | None = None

    def start(self, job: Job, folder: Path) -> Child:
        """Begin a job; its streams go to files in `folder`."""
        if self.child is not None:
            self.child.kill()
        self.connection.send((job, folder / "stream"))
        self.child = Child(self.connection, self.connection.recv(), folder / "stream")
        return self.child

    def run(self, job: Job, folder: Path) -> Outcome:
        return self.start(job, folder).outcome()

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
        self.connection.close()
        self.process.wait(PATIENCE)


class Child:
    """A forked process at work."""

    def __init__(self, connection: Connection, pid: int, streams: Path) -> None:
        self.connection, self.pid, self.streams = connection, pid, streams
        self.code: int | None = None

    def ended(self, seconds: float) -> bool:
        """Return True when it has ended; wait for that so many seconds at most."""
        if self.code is None and self.connection.poll(seconds):
            self.code = self.connection.recv()
        return self.code is not None

    def wait_until(self, true: Callable[[], object]) -> bool:
        """Wait for something to come true; False where the process ends before."""
        for _ in range(PATIENCE * 200):
            if true():
                return True
            if self.ended(0.005):
                return False
        raise AssertionError(f"waited in vain: {self.err}")

    def outcome(self) -> Outcome:
        if not self.ended(PATIENCE):
            self.kill()
            raise AssertionError(f"does not end: {self.err}")
        assert self.code is not None
        return Outcome(self.code, Path(f"{self.streams}.out").read_text(), self.err)

    @property
    def err(self) -> str:
        return Path(f"{self.streams}.err").read_text()

    def kill(self) -> int:
        """Kill it with SIGKILL, and return its exit code, which is another where it ended first."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            assert self.ended(PATIENCE)
        assert self.code is not None
        return self.code

    def signal(self, number: int) -> Outcome:
        os.kill(self.pid, number)
        return self.outcome()
