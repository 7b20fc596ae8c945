"""Bad inputs and faults, as a table. Each row is one command that must fail in the way all commands fail.

A failure is one line on stderr that begins with `difftool: error`, an exit code (2 for wrong usage, 1 for a failed
run), no traceback, nothing on stdout, no control character that could reach a terminal, and a folder that is what it
was. The rows say the rest: what to prepare, what to call, and which pieces the line must have. `pytest -s` (or `-rA`)
prints them all, with the lines, at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, invoke, last_of, spawn, tree
from PIL import Image

from difftool import NoiseSchedule, Schedule, hookimpl
from difftool.files import TEMPORARY
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder
from difftool.testing import PluginManager

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, links, limits and modes as POSIX has them")

SECONDS = 20
"""More than any row takes; a command that waits for something that never comes is stopped here."""
LONG = "x" * 300
"""A name that no file can have."""
ESCAPE = "a\x1b[31m\nb"
"""A name that would colour a terminal and break a line."""


# --- what rows are made of -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The trained runs that rows read or copy."""

    points: Path
    images: Path
    labels: Path

    def argument(self, word: object) -> str:
        """`POINTS/model.safetensors` as a path; other words as they are."""
        head, slash, tail = str(word).partition("/")
        runs = {"POINTS": self.points, "IMAGES": self.images, "LABELS": self.labels}
        return f"{runs[head]}{slash}{tail}" if head in runs else str(word)


@pytest.fixture(scope="session")
def world(points_run: Path, images_run: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    labels = tmp_path_factory.mktemp("labelled") / "labels"
    four = ("--dataset", "gaussian-mixture", "--dataset.components", 4, "--dataset.labels")
    outcome = invoke("train", *four, *POINTS, "--steps", 2, "--out", labels)
    assert outcome.code == 0, outcome.err
    return World(points_run, images_run, labels)


Step = Callable[[Path, World], object]
"""Prepares the folder that a command runs in."""


class Fault(NamedTuple):
    """A command, what it finds, and how it must fail."""

    id: str
    arguments: Sequence[object]
    code: int
    pieces: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


TABLE: list[tuple[str, int, str]] = []
"""Rows that were run by this process: id, exit code, error line."""


def refused(name: str, outcome: Outcome, code: int, pieces: Sequence[str]) -> None:
    """The rules for every failure."""
    lines = outcome.err.splitlines()
    TABLE.append((name, outcome.code, lines[-1] if lines else ""))
    assert "Traceback" not in outcome.err
    assert len([line for line in lines if re.match(r"difftool: error\b", line)]) == 1, outcome.err
    assert len([line for line in lines if re.search(r"\b[Ee]rror: ", line)]) == 1, outcome.err
    assert "this is a bug in difftool" not in outcome.err
    assert lines[-1] == outcome.error, "the error comes last"
    assert not [c for c in outcome.err if not c.isprintable() and c != "\n"]
    assert len(outcome.error) < 2000, "a line that can be read"
    assert outcome.out == ""
    for piece in pieces:
        assert piece in outcome.error
    assert outcome.code == code, outcome.err


def snapshot(folder: Path) -> dict[str, object]:
    """All that lies in a folder, but for locks of runs, which carry the number of the last process."""

    def describe(path: Path) -> object:
        if path.is_symlink():
            return ("link", os.readlink(path))
        if path.is_dir():
            return "folder"
        return path.read_bytes() if path.is_file() else "special"

    found = (p for p in sorted(folder.rglob("*")) if p.name != "lock" or p.is_dir())
    return {str(p.relative_to(folder)): describe(p) for p in found}


class Waits(BaseException):
    """No `except Exception` may catch it."""


@contextlib.contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Stop what waits for ever."""

    def stop(*_: object) -> None:
        raise Waits

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Waits:
        pytest.fail(f"did not end within {seconds} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(fault: Fault, folder: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare a row, run it in this process, and hold it to the rules."""
    monkeypatch.chdir(folder)
    for step in fault.steps:
        step(folder, world)
    before = snapshot(folder)
    with limited():
        outcome = invoke(*map(world.argument, fault.arguments))
    refused(fault.id, outcome, fault.code, fault.pieces)
    assert snapshot(folder) == before


def rows(*groups: Sequence[Fault]) -> pytest.MarkDecorator:
    """`@rows(TABLE)`: a test of a fault for each row."""
    faults = [fault for group in groups for fault in group]
    return pytest.mark.parametrize("fault", faults, ids=[fault.id for fault in faults])


# --- preparing -----------------------------------------------------------------------------------------------------


def put(name: str, content: str | bytes = "x") -> Step:
    """A file with this content, in place of whatever has the name."""

    def step(folder: Path, _: World) -> None:
        path = folder / name
        clear(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return step


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def gone(name: str) -> Step:
    return lambda folder, _: clear(folder / name)


def folder(name: str, *, full: bool = False) -> Step:
    """A folder in place of whatever has the name; empty, or with a file in it."""

    def step(at: Path, _: World) -> None:
        clear(at / name)
        (at / name).mkdir(parents=True)
        if full:
            (at / name / "mine.txt").write_text("mine")

    return step


def link(name: str, target: str) -> Step:
    def step(at: Path, _: World) -> None:
        clear(at / name)
        (at / name).symlink_to(target)

    return step


def fifo(name: str) -> Step:
    """A pipe that nobody writes to: who opens it waits."""

    def step(at: Path, _: World) -> None:
        clear(at / name)
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(at / name)

    return step


def image(name: str, size: tuple[int, int] = (8, 8), colour: int = 90) -> Step:
    def step(at: Path, _: World) -> None:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (colour, 120, 200)).save(at / name)

    return step


def truncated_image(name: str) -> Step:
    """The first half of a file of noise, whose header is whole."""

    def step(at: Path, _: World) -> None:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(at / name)
        data = (at / name).read_bytes()
        (at / name).write_bytes(data[: len(data) // 2])

    return step


def bomb(name: str, side: int = 60_000) -> Step:
    """A tiny PNG that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", size), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b""))
    return put(name, b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def copied(name: str = "r", of: str = "POINTS") -> Step:
    """A run to damage."""
    return lambda at, world: shutil.copytree(world.argument(of), at / name)


def edited(name: str, old: str, new: str) -> Step:
    def step(at: Path, _: World) -> None:
        text = (at / name).read_text()
        assert old in text
        (at / name).write_text(text.replace(old, new))

    return step


@functools.cache
def loaded(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and document of a file, as `checkpoint.save` wants them."""
    tensors, document = checkpoint.load(path)
    document.pop("format")
    return tensors, document


Tensors = dict[str, torch.Tensor]
KEEP: Any = object()


def resaved(path: Path, of: Path, key: str, value: object, tensors: Callable[[Tensors], object] | None) -> None:
    """A file with another value at `backbone.width` (KEEP: none; ...: without it) or tensors, its digest right."""
    weights, document = loaded(of)
    weights, document = dict(weights), json.loads(json.dumps(document))
    if tensors is not None:
        tensors(weights)
    *tables, last = key.split(".")
    table = functools.reduce(lambda d, k: d[k], tables, document)
    if value is ...:
        del table[last]
    elif value is not KEEP:
        table[last] = value
    checkpoint.save(path, weights, document)


def model(
    key: str = "kind", value: object = KEEP, *, of: str = "POINTS", tensors: Callable[[Tensors], object] | None = None
) -> Step:
    """`m.safetensors`: a model file with another value or other tensors, and the digest that goes with them."""
    return lambda at, world: resaved(
        at / "m.safetensors", Path(world.argument(f"{of}/model.safetensors")), key, value, tensors
    )


def state(key: str = "kind", value: object = KEEP, *, tensors: Callable[[Tensors], object] | None = None) -> Step:
    """The newest state of the run `r`, with another value or other tensors."""

    def step(at: Path, _: World) -> None:
        path = newest(at)
        resaved(path, path, key, value, tensors)
        loaded.cache_clear()

    return step


def newest(at: Path, name: str = "r") -> Path:
    return RunFolder(at / name).saved_states()[0]


def spoilt_state(change: Callable[[bytes], bytes]) -> Step:
    def step(at: Path, _: World) -> None:
        for path in RunFolder(at / "r").saved_states():
            path.write_bytes(change(path.read_bytes()))

    return step


def spoilt(change: Callable[[bytes], bytes], name: str = "m.safetensors") -> Step:
    """The bytes of a model file, changed."""
    return lambda at, world: (at / name).write_bytes(change((world.points / "model.safetensors").read_bytes()))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: str, data: bytes) -> bytes:
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def header(change: Callable[[dict[str, Any], list[str]], object]) -> Step:
    """A model file whose header was changed; the names of its tensors are handed over too."""

    def rewrite(data: bytes) -> bytes:
        head, rest = split(data)
        change(head, [name for name in head if name != "__metadata__"])
        return joined(json.dumps(head), rest)

    return spoilt(rewrite)


def header_text(change: Callable[[str], str]) -> Step:
    """A model file whose header was changed as text."""

    def rewrite(data: bytes) -> bytes:
        head, rest = split(data)
        return joined(change(json.dumps(head)), rest)

    return spoilt(rewrite)


def envelope(text: str) -> Step:
    """A model file with this text where document and digest are."""
    return header(lambda head, _: head["__metadata__"].update(difftool=text))


def document(change: Callable[[str], str]) -> Step:
    """A model file whose document was changed as text; its digest is right."""

    def rewrite(data: bytes) -> bytes:
        head, rest = split(data)
        text = change(json.loads(head["__metadata__"]["difftool"])["document"])
        names = [name for name in head if name != "__metadata__"]
        weights = {
            name: torch.frombuffer(bytearray(rest[slice(*head[name]["data_offsets"])]), dtype=torch.float32).view(
                head[name]["shape"]
            )
            for name in names
        }
        sealed = {"document": text, "sha256": checkpoint.digest(weights, text)}
        head["__metadata__"]["difftool"] = json.dumps(sealed)
        return joined(json.dumps(head), rest)

    return spoilt(rewrite)


def flipped(position: Callable[[bytes], int]) -> Step:
    def rewrite(data: bytes) -> bytes:
        at = position(data)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return spoilt(rewrite)


def ends(data: bytes) -> int:
    """Where the header of a safetensors file ends."""
    return 8 + int.from_bytes(data[:8], "little")


# --- options -------------------------------------------------------------------------------------------------------

TRAIN = ("train", "--dataset.n", 64, "--backbone.width", 8, "--backbone.depth", 1, "--batch-size", 8, "--steps", 2)
TRAIN = (*TRAIN, "--preview-every", 0)
"""A run of points that ends at once."""
SAMPLE = ("sample", "POINTS", "-n", 3, "--steps", 2, "--out", "new.npy")

BIG = "9" * 30
DIGITS = "9" * 5000
NUMBERS: dict[tuple[object, ...], dict[str, str]] = {
    ("train",): {
        "--steps": f"abc 1.5 -1 nan 1e3 0x10 10**9 1000000001 {BIG} {DIGITS}",
        "--epochs": "0 10000001",
        "--batch-size": "0 1000001",
        "--lr": "0 nan inf -inf -1e-3 1e400 1e-400 11 x",
        "--timesteps": "0 100001",
        "--warmup": "-1",
        "--clip": "-1 inf",
        "--ema": "1 -0.1 nan 0.9,1 0,0.9 0.9,0.9 ,",
        "--ema-lengths": "0 0.3 nan x 0.1,0.1",
        "--held-out": "-1",
        "--condition-dropout": "1.5 -0.1",
        "--seed": f"-1 {2**63}",
        "--threads": "0 1025",
        "--workers": "-1 257",
        "--keep": "0",
        "--checkpoint-every": "0 0ep -5 1.5ep often 9999999999",
        "--preview-every": "-1 x 2epochs",
        "--dataset.n": "0 10000001 1e3",
        "--dataset.noise": "-1 nan inf 1e400",
        "--backbone.width": "0 16385",
        "--schedule.beta-min": "0 1",
        "--schedule.beta-max": "1 nan",
    },
    ("sample", "POINTS"): {
        "--steps": "0 100001",
        "-n": "0 10000000000 x",
        "--batch-size": "0 99999999999",
        "--seed": f"-1 {2**63}",
        "--guidance": "nan inf -1 1001 , 1,, 2,nan",
        "--threshold": "0 2",
        "--interpolate": f"1 1,1 a,b 1,2,3 -1,2 1,{2**63}",
        "--strength": "0 2",
        "--threads": "0 1025",
        "--columns": "0",
        "--strip": "1 -3",
        "--sampler.eta": "nan 2 -1 x",
        "--ema-length": "0 0.3 nan inf x 0.05,0.1",
    },
    ("noise",): {
        "--timesteps": "0 100001",
        "--at": "x -1 nan , 0.5",
        "-n": "0 1000001",
        "--size": "0 8,9,10 x -1 8193",
        "--seed": "-1",
        "--schedule.beta-min": "1",
        "--dataset.n": "0",
    },
    ("inspect-schedule", "linear"): {
        "--timesteps": "0 100001",
        "--schedule.beta-min": "0 x",
        "--schedule.beta-max": "2",
    },
    ("compare", "POINTS"): {
        "--calls": "0 -1 x nan 5,0 100001",
        "-n": "1 10000001",
        "--batch-size": "0",
        "--seed": f"-1 {2**63}",
        "--reference": "1 100001",
        "--threads": "0 1025",
    },
}
"""Values beyond each option's bounds, or against its own format. What a type refuses stands once: `--steps` for whole
numbers and `--lr` for real ones, and `--dataset.n`, `--dataset.noise` and `--sampler.eta` for options of components."""
FLAGS = {"-n": "num-samples"}


def shown(value: object) -> str:
    """A value in the id of a row."""
    text = str(value)
    return text if len(text) <= 32 else f"{text[:8]}..{len(text)}"


NUMBER_ROWS = [
    Fault(f"{command[0]} {option} {shown(value)}", (*command, option, value), 2, (FLAGS.get(option, option), "must"))
    for command, options in NUMBERS.items()
    for option, values in options.items()
    for value in values.split()
]
EMPTY_ROWS = [
    Fault(f"empty {command[0]} {option}", (*command, option, ""), 2, (FLAGS.get(option, option),))
    for command, options in {
        (
            *TRAIN,
        ): "--out --config --resume --device --backbone --schedule --steps --lr --seed --loss --checkpoint-every",
        ("train", "--dataset", "image-folder"): "--dataset.path --dataset.size",
        ("sample", "IMAGES"): "--out --init --sampler --label --device --guidance --weights",
        ("noise",): "--out --at --dataset",
        ("reconstruct", "POINTS"): "--out --at --seed",
        ("compare", "POINTS"): "--samplers --spacings --calls --out",
    }.items()
    for option in options.split()
] + [
    Fault(f"empty argument of {command}", (command, ""), 2)
    for command in ("sample", "info", "compare", "noise", "list")
]

USAGE = [
    Fault("command misspelt", ("traim",), 2, ("train",)),
    Fault("command in capitals", ("Train",), 2, ("train",)),
    Fault("command empty", ("",), 2),
    Fault("command with escapes", (ESCAPE,), 2, (r"a\x1b[31m",)),
    Fault("command with NUL", ("\0",), 2, (r"\x00",)),
    Fault("command of 100,000 characters", ("x" * 100_000,), 2),
    Fault("option misspelt", ("train", "--step", 50), 2, ("--step", "did you mean --steps")),
    Fault("option of no command", ("--nope",), 2, ("--nope",)),
    Fault("option unknown", ("train", "--nope", 1), 2, ("there is no option --nope",)),
    Fault("option with escapes", ("train", f"--{ESCAPE}", 1), 2, (r"--a\x1b[31m",)),
    Fault("option of a nameless kind", ("train", "--.x", 1), 2, ("--.x",)),
    Fault("option of nothing", ("train", "--backbone.", 4), 2, ("backbone takes --backbone.",)),
    Fault("option of another component", ("train", "--backbone.dim", 4), 2, ("option of the backbone unet",)),
    Fault("option of another kind", ("train", "--sampler.eta", 1), 2, ("is an option of the samplers",)),
    Fault("option without its value", ("train", "--steps"), 2, ("--steps", "argument")),
    Fault("switch with a value", ("train", "--overwrite=yes"), 2, ("--overwrite",)),
    Fault("option given twice, the second wrong", (*TRAIN, "--seed", 1, "--seed", -1), 2, ("--seed",)),
    Fault("component given twice", (*TRAIN, "--schedule", "cosine", "--schedule", "nope"), 2, ("'nope'",)),
    Fault("steps and epochs", (*TRAIN, "--epochs", 5), 2, ("--epochs", "--steps")),
    Fault("argument too many", ("train", "extra"), 2, ("unexpected extra argument", "extra")),
    Fault("two runs", ("sample", "POINTS", "LABELS"), 2, ("unexpected extra argument",)),
    Fault("backbone unknown", ("train", "--backbone", "nope"), 2, ("unknown backbone 'nope'", "mlp, unet")),
    Fault("backbone nearly known", ("train", "--backbone", "unett"), 2, ("did you mean 'unet'",)),
    Fault("backbone an import path", ("train", "--backbone", "os:system"), 2, ("unknown backbone 'os:system'",)),
    Fault("backbone a file", ("train", "--backbone", "../../x"), 2, ("unknown backbone '../../x'",)),
    Fault("backbone with escapes", ("train", "--backbone", ESCAPE), 2, (r"\x1b[31m",)),
    Fault("backbone of 100,000 characters", ("train", "--backbone", "x" * 100_000), 2, ("unknown backbone 'xxx",)),
    Fault("dataset unknown", ("train", "--dataset", "nope"), 2, ("unknown dataset 'nope'",)),
    Fault("schedule unknown", ("noise", "--schedule", "nope"), 2, ("unknown schedule 'nope'",)),
    Fault("schedules, one unknown", ("inspect-schedule", "linear", "nope"), 2, ("unknown schedule 'nope'",)),
    Fault("prediction unknown", ("train", "--prediction", "nope"), 2, ("unknown prediction 'nope'",)),
    Fault("weighting unknown", ("train", "--weighting", "nope"), 2, ("unknown weighting 'nope'", "'none'")),
    Fault("time unknown", ("train", "--timestep-sampling", "nope"), 2, ("unknown timestep-sampling 'nope'",)),
    Fault("sampler nearly known", ("sample", "POINTS", "--sampler", "dimm"), 2, ("did you mean 'ddim'",)),
    Fault("spacing unknown", ("sample", "POINTS", "--spacing", "ddim"), 2, ("unknown spacing 'ddim'",)),
    Fault("oracle unknown", ("sample", "--oracle", "nope"), 2, ("unknown oracle 'nope'",)),
    Fault("samplers, one unknown", ("compare", "POINTS", "--samplers", "ddim,nope"), 2, ("'nope'",)),
    Fault("kind unknown", ("list", "smaplers"), 2, ("did you mean 'samplers'",)),
    Fault("loss unknown", ("train", "--loss", "l2"), 2, ("unknown loss 'l2'", "mse")),
    Fault(
        "weights unknown", ("sample", "POINTS", "--weights", "best"), 2, ("--weights", "'best'", "ema, raw, ema-0.999")
    ),
    Fault("an oracle and a run", ("sample", "POINTS", "--oracle", "ideal"), 2, ("either an oracle or a run",)),
    Fault("an oracle's option for a run", ("sample", "POINTS", "--timesteps", 5), 2, ("--timesteps",)),
    Fault("an oracle and weights", ("sample", "--oracle", "ideal", "--weights", "raw"), 2, ("--weights",)),
    Fault("an oracle and precision", ("sample", "--oracle", "ideal", "--precision", "bf16"), 2, ("--precision",)),
    Fault("no formula of this data", ("sample", "--oracle", "closed-form", "-n", 2), 2, ("no formula is known",)),
    Fault("trajectory of a picture", ("sample", "POINTS", "--trajectory"), 2, ("--trajectory", "arrays")),
    Fault("raw of a picture", ("sample", "POINTS", "--raw"), 2, ("--raw", "arrays")),
    Fault("a label without classes", ("sample", "POINTS", "--label", 0), 2, ("--label", "has no classes")),
    Fault("guidance without classes", ("sample", "POINTS", "--guidance", 2), 2, ("--guidance", "has no classes")),
    Fault("label 10 of four", ("sample", "LABELS", "--label", 10), 2, ("no class '10'", "0, 1, 2, 3")),
    Fault("label -1", ("sample", "LABELS", "--label", -1), 2, ("no class '-1'",)),
    Fault("label of 100,000 characters", ("sample", "LABELS", "--label", "x" * 100_000), 2, ("no class 'xxx",)),
    Fault("label with escapes", ("sample", "LABELS", "--label", ESCAPE), 2, (r"\x1b[31m",)),
    Fault("label of several, one unknown", ("sample", "LABELS", "--label", "1,7,2"), 2, ("no class '7'", "0, 1, 2, 3")),
    Fault("label twice", ("sample", "LABELS", "--label", "1,2,1"), 2, ("--label", "names class '1' twice")),
    Fault("label all and one", ("sample", "LABELS", "--label", "all,1"), 2, ("no class 'all'",)),
    Fault("label ends in a comma", ("sample", "LABELS", "--label", "1,"), 2, ("no class ''",)),
    Fault("label of 100,000 commas", ("sample", "LABELS", "--label", "," * 100_000), 2, ("no class ''",)),
    Fault("label all without classes", ("sample", "POINTS", "--label", "all"), 2, ("--label", "has no classes")),
    Fault(
        "a path of several classes",
        ("sample", "LABELS", "--label", "all", "--interpolate", "0,1"),
        2,
        ("--label", "a path of one class; name one"),
    ),
    Fault("two guidances, one unknown", ("sample", "LABELS", "--label", 0, "--guidance", "1,cgf"), 2, ("cgf", "cfg")),
    Fault(
        "two guidances without a label",
        ("sample", "LABELS", "--label", "none", "--guidance", "1,2"),
        2,
        ("--guidance", "--label"),
    ),
    Fault("several classes to compare", ("compare", "LABELS", "--label", "1,2"), 2, ("no class '1,2'",)),
    Fault("label of a comparison", ("compare", "LABELS", "--label", 9), 2, ("no class '9'",)),
    Fault("guidance without a label", ("sample", "LABELS", "--label", "none", "--guidance", 2), 2, ("--label",)),
    Fault("interval without guidance", ("sample", "LABELS", "--guidance.interval", "0.3,5"), 2, ("guidances auto",)),
    Fault("threshold without bounds", ("sample", "POINTS", "--threshold", 0.9), 2, ("--threshold", "no bounds")),
    Fault("threshold and no clipping", ("sample", "IMAGES", "--threshold", 0.9, "--no-clip"), 2, ("--threshold",)),
    Fault("strength of nothing", ("sample", "IMAGES", "--strength", 0.5), 2, ("--strength", "--init")),
    Fault("an image for points", ("sample", "POINTS", "--init", "x.png"), 2, ("--init", "not an image model")),
    Fault("a hole without a mask", ("sample", "IMAGES", "--inpaint", "x.png"), 2, ("--mask",)),
    Fault("a mask without a hole", ("sample", "IMAGES", "--mask", "x.png"), 2, ("--inpaint",)),
    Fault("a path of one", ("sample", "POINTS", "--interpolate", "0,1", "-n", 1), 2, ("--num-samples",)),
    Fault(
        "a path of a random sampler",
        ("sample", "POINTS", "--interpolate", "0,1", "--sampler", "ddpm", "--steps", 3, "-n", 3),
        2,
        ("--interpolate", "ddpm"),
    ),
    Fault("steps above T", ("sample", "POINTS", "--steps", 1001), 2, ("--steps", "1001", "1000 levels")),
    Fault("a level above T", ("noise", "--at", 1000), 2, ("--at: 1000", "999")),
    Fault("65 levels", ("noise", "--at", "0," * 65), 2, ("--at", "at most 64")),
    Fault("a size for a dataset", ("noise", "--size", 8), 2, ("--size",)),
    Fault("images and a dataset", ("noise", "x.png", "--dataset", "swiss-roll"), 2, ("--dataset",), (image("x.png"),)),
    Fault("reconstruct without a run", ("reconstruct",), 2, ("RUN",)),
    Fault("reconstruct a level above T", ("reconstruct", "POINTS", "--at", 1000), 2, ("--at: 1000", "999")),
    Fault("a schedule for a run", ("reconstruct", "POINTS", "--schedule", "cosine"), 2, ("--schedule",)),
    Fault("all held out", (*TRAIN, "--held-out", 64), 2, ("--held-out", "64 of 64")),
    Fault("beta upside down", (*TRAIN, "--schedule.beta-min", 0.5, "--schedule.beta-max", 0.1), 2, ("beta-max", "0.5")),
    Fault("levels alike", ("inspect-schedule", "scaled-linear", "--schedule.beta-max", 0.99999), 2, ("scaled-linear",)),
    Fault("self-conditioning", (*TRAIN, "--self-condition", "--steps", "x"), 2, ("--steps",)),
    Fault("points for a U-Net", ("train", "--backbone", "unet", "--dataset", "swiss-roll"), 2, ("needs series",)),
    Fault("8x9 for a U-Net", ("train", *IMAGES, "--dataset.size", "8,9"), 2, ("8x9", "8x8 or 8x10")),
    Fault("1x1 for a U-Net", ("train", *IMAGES, "--dataset.size", 1), 2, ("1x1",)),
    Fault("groups that do not divide", ("train", *IMAGES, "--backbone.groups", 7), 2, ("--backbone.groups",)),
    Fault("468,750 GiB of images", ("train", *IMAGES, "--dataset.size", 4096, "--dataset.n", 10**7), 2, ("GiB",)),
    Fault("a network of 10^12 channels", ("train", *IMAGES, "--backbone.dim", 10**12), 2, ("--backbone.dim",)),
    *(
        Fault(f"device {shown(name)!r} for {command[0]}", (*command, "--device", name), 2, ("--device", "cpu"))
        for command in (TRAIN, SAMPLE, ("compare", "POINTS"), ("noise",))
        for name in ("mps", "cuda:97", "banana", "cuda:", "cuda:-1", "CPU", "cpu\n", f"cuda:{DIGITS}")
        if command is TRAIN or name in ("cuda:97", "banana")
    ),
    *(
        Fault(
            f"half precision on a CPU, {c[0]}",
            (*c, "--precision", "fp16", "--device", "cpu"),
            2,
            ("--precision", "fp16"),
        )
        for c in (TRAIN, SAMPLE)
    ),
]


@rows(NUMBER_ROWS, EMPTY_ROWS, USAGE)
def test_wrong_usage(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


def test_no_command_is_answered_with_help() -> None:
    outcome = invoke()
    assert outcome.code == 2
    assert "name a command" in outcome.error
    assert "inspect-schedule" in outcome.out


# --- config files --------------------------------------------------------------------------------------------------

CONFIG = ("train", "--dry-run", "--config", "c.toml")
CONFIGS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "no TOML": ("[[[", ("c.toml", "not valid TOML", "line 1")),
    "a text": ('"x"', ("c.toml", "not valid TOML")),
    "a table unknown": ("\n[modle]\n", ("c.toml, line 2", "modle")),
    "a table misspelt": ("[backbnoe]\n", ("c.toml, line 1", "did you mean 'backbone'")),
    "a table twice": ("[training]\n[training]\n", ("c.toml", "line 2")),
    "a key twice": ("[training]\nlr = 0.1\nlr = 0.2\n", ("c.toml", "line 3")),
    "a key unknown": ("\n[backbone]\nwidht = 3\n", ("c.toml, line 3", "backbone.widht", "did you mean 'width'")),
    "a key with escapes": ('[backbone]\n"a\\u001b[31m" = 3\n', ("c.toml", r"\x1b[31m")),
    "a table with escapes": ('["a\\u001b[31m"]\n', ("c.toml", r"\x1b[31m")),
    "a key outside tables": ("lr = 0.1\n", ("c.toml", "lr")),
    "an option of the command line": ('[training]\ndevice = "cuda"\n', ("c.toml, line 2", "training.device")),
    "a table that is a number": ("training = 3\n", ("c.toml", "training: must be a table")),
    "a table that is a text": ('backbone = "mlp"\n', ("c.toml", "backbone: must be a table")),
    "a list of tables": ("[[training]]\nlr = 1.0\n", ("c.toml", "training: must be a table")),
    "text for a number": ('[training]\n\nsteps = "many"\n', ("c.toml, line 3", "training.steps")),
    "1.5 steps": ("[training]\nsteps = 1.5\n", ("c.toml, line 2", "training.steps")),
    "true steps": ("[training]\nsteps = true\n", ("c.toml, line 2", "training.steps")),
    "nan": ("[training]\nlr = nan\n", ("c.toml, line 2", "training.lr", "finite")),
    "-inf": ("[training]\nlr = -inf\n", ("c.toml, line 2", "training.lr", "finite")),
    "a date": ("[training]\nlr = 2020-01-01\n", ("c.toml, line 2", "training.lr")),
    "a list for a number": ("[training]\nlr = [1.0]\n", ("c.toml, line 2", "training.lr")),
    "a table for a number": ("[training]\nlr = {a = 1}\n", ("c.toml, line 2", "training.lr")),
    "26 digits": (f"[training]\nsteps = {BIG}\n", ("c.toml, line 2", "training.steps")),
    "5,000 digits": (f"[training]\nsteps = {DIGITS}\n", ("c.toml",)),
    "10^7 timesteps": ("[training]\ntimesteps = 10000000\n", ("c.toml, line 2", "training.timesteps")),
    "steps and epochs": ("[training]\nsteps = 5\nepochs = 5\n", ("c.toml", "epochs")),
    "a commented key": ("[training]\n# lr = 3\nlr = -1.0\n", ("c.toml, line 3", "training.lr")),
    "a quoted key": ('["training"]\n"lr" = -1.0\n', ("c.toml, line 2", "training.lr")),
    "a dotted key": ("training.lr = -1.0\n", ("c.toml", "training.lr")),
    "a key behind a byte-order mark": ("\ufeff[training]\nlr = -1.0\n", ("c.toml, line 2", "training.lr")),
    "a name unknown": ('\n\n[backbone]\nname = "nope"\n', ("c.toml, line 4", "unknown backbone 'nope'")),
    "a name that is a path": ('[schedule]\nname = "../../x"\n', ("c.toml, line 2", "'../../x'")),
    "a name with escapes": ('[dataset]\nname = "a\\u001b[31m"\n', ("c.toml, line 2", r"\x1b[31m")),
    "a name that is a number": ("[backbone]\nname = 3\n", ("c.toml, line 2", "name", "text")),
    "a name that is a list": ('[backbone]\nname = ["mlp"]\n', ("c.toml, line 2", "name", "text")),
    "an empty name": ('[backbone]\nname = ""\n', ("c.toml, line 2",)),
    "a path that is a number": ('[dataset]\nname = "image-folder"\npath = 3\n', ("c.toml, line 3", "dataset.path")),
    "no path": ('[dataset]\nname = "image-folder"\n', ("path", "must be given")),
    "three sizes": ('[dataset]\nname = "gradients"\nsize = [8, 9, 10]\n', ("c.toml, line 3", "dataset.size")),
    "a hundred sizes": (f'[dataset]\nname = "gradients"\nsize = {[8] * 100}\n', ("c.toml, line 3", "at most 64")),
    "beta upside down": ("[schedule]\nbeta_min = 0.5\nbeta_max = 0.1\n", ("c.toml, line 3", "schedule.beta_max")),
    "dashes for underscores": ("[schedule]\nbeta-min = 0.5\n", ("c.toml, line 2", "beta_min")),
    "a network that does not fit": ('[backbone]\nname = "unet"\n[dataset]\nname = "swiss-roll"\n', ("needs series",)),
    "nesting of 50,000": ("x = " + "[" * 50_000, ("c.toml", "nested too deeply")),
    "Latin-1": ('[dataset]\nname = "é"\n'.encode("latin1"), ("c.toml",)),
    "UTF-16": ("[training]\n".encode("utf-16"), ("c.toml",)),
    "NUL": ("\0", ("c.toml", "line 1")),
    "bytes": (bytes(range(256)) * 8, ("c.toml",)),
    "escapes": ("\x1b[31m = 3\n", ("c.toml", "line 1")),
}
CONFIG_ROWS = [
    *(Fault(f"config: {name}", CONFIG, 2, pieces, (put("c.toml", text),)) for name, (text, pieces) in CONFIGS.items()),
    Fault("config missing", CONFIG, 2, ("c.toml does not exist",)),
    Fault("config a folder", CONFIG, 2, ("c.toml",), (folder("c.toml"),)),
    Fault("config a pipe", CONFIG, 2, ("c.toml", "regular file"), (fifo("c.toml"),)),
    Fault("config without an end", ("train", "--dry-run", "--config", "/dev/zero"), 2, ("/dev/zero", "regular file")),
    Fault("config a link to itself", CONFIG, 2, ("c.toml",), (link("c.toml", "c.toml"),)),
    Fault("config a link to nothing", CONFIG, 2, ("c.toml does not exist",), (link("c.toml", "no"),)),
    Fault("config a model", ("train", "--config", "POINTS/model.safetensors"), 2, ("not valid TOML",)),
    Fault("config a run", ("train", "--config", "POINTS"), 2, ("points",)),
    Fault("config with escapes", ("train", "--config", ESCAPE), 2, (r"a\x1b[31m",)),
    Fault("config with NUL", ("train", "--config", "a\0b"), 2, ("--config",)),
    Fault("config of 300 characters", ("train", "--config", LONG), 2, ("xxx",)),
    Fault(
        "config twice, the second missing", (*CONFIG, "--config", "no"), 2, ("no does not exist",), (put("c.toml", ""),)
    ),
    Fault(
        "config fine, option wrong",
        (*CONFIG, "--lr", "nan"),
        2,
        ("--lr: must",),
        (put("c.toml", "[training]\nlr = 1\n"),),
    ),
]


@rows(CONFIG_ROWS)
def test_config_files(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


# --- outputs -------------------------------------------------------------------------------------------------------

OUT = (*TRAIN, "--out")
TO = (*SAMPLE[:-1],)
PICTURES = ("sample", "IMAGES", "-n", 3, "--steps", 1, "--out")
OUT_ROWS = [
    Fault("--out a file", (*OUT, "r"), 1, ("--out: r is a file",), (put("r"),)),
    Fault("--out a file, --overwrite", (*OUT, "r", "--overwrite"), 1, ("--out: r is a file",), (put("r"),)),
    Fault("--out a full folder", (*OUT, "r"), 1, ("--out: r is not empty",), (folder("r", full=True),)),
    Fault(
        "--out a full folder that is no run, --overwrite",
        (*OUT, "r", "--overwrite"),
        1,
        ("--out: r is not a run folder",),
        (folder("r", full=True),),
    ),
    Fault("--out a run", (*OUT, "r"), 1, ("--out: r is not empty", "--overwrite"), (copied(),)),
    Fault(
        "--out a link to a full folder", (*OUT, "l"), 1, ("l is not empty",), (folder("r", full=True), link("l", "r"))
    ),
    Fault("--out a link to nothing", (*OUT, "l"), 1, ("l is a broken link",), (link("l", "no"),)),
    Fault("--out a link to itself", (*OUT, "l"), 1, ("l ",), (link("l", "l"),)),
    Fault("--out below a link to nothing", (*OUT, "l/x"), 1, ("l/x",), (link("l", "no"),)),
    Fault("--out below a link to itself", (*OUT, "l/x"), 1, ("l/x",), (link("l", "l"),)),
    Fault("--out below a file", (*OUT, "f/x"), 1, ("f/x", "is not a folder"), (put("f"),)),
    Fault("--out a pipe", (*OUT, "p"), 1, ("--out: p",), (fifo("p"),)),
    Fault("--out here, where files are", (*OUT, "."), 1, ("--out: . is not empty",), (put("mine.txt"),)),
    Fault("--out the root", (*OUT, "/"), 1, ("--out: / is not empty",)),
    Fault("--out a device", (*OUT, "/dev/null"), 1, ("/dev/null is a file",)),
    Fault("--out below a device", (*OUT, "/dev/null/x"), 1, ("/dev/null",)),
    Fault("--out of 300 characters", (*OUT, LONG), 1, ("xxx",)),
    Fault("--out of 300 characters in a new folder", (*OUT, f"new/{LONG}"), 1, ("xxx",)),
    Fault("--out of 5,000 folders", (*OUT, "x/" * 5000), 1),
    Fault("--out with NUL", (*OUT, "a\0b"), 2, ("--out", "null byte")),
    Fault("--out with escapes, taken", (*OUT, ESCAPE), 1, (r"a\x1b[31m", "is a file"), (put(ESCAPE),)),
    Fault("--out whose lock is a folder", (*OUT, "r"), 1, ("r/lock",), (folder("r/lock"),)),
    Fault(
        "--out whose lock is a link",
        (*OUT, "r"),
        1,
        ("r/lock",),
        (put("v", "mine"), folder("r"), link("r/lock", "../v")),
    ),
    Fault("runs a file", TRAIN, 1, ("runs", "not a folder"), (put("runs"),)),
    Fault("runs a link to nothing", TRAIN, 1, ("runs", "link"), (link("runs", "no"),)),
    Fault("runs a link to itself", TRAIN, 1, ("runs",), (link("runs", "runs"),)),
    Fault("runs a file, sample", ("sample",), 1, ("there is no trained run",), (put("runs"),)),
    *(
        Fault(f"sample --out {shown(name)}", (*TO, name), 2, ("--out", name), ())
        for name in ("x.bmp", "x.exe", "x.pt", "x.tar.gz", "x.png ", ".png", ".npy", "x.webm")
    ),
    *(
        Fault(f"{c[0]} --out {name}", (*c, "--out", name), 2, (f"--out: {name}",))
        for c in (("noise",), ("inspect-schedule", "linear"), ("compare", "POINTS"))
        for name in ("x.npy", "x", "x.bmp")
    ),
    Fault("a folder of points", (*TO, "x"), 2, ("a folder holds images",)),
    Fault("a picture that exists", (*TO, "x.png"), 1, ("x.png exists already", "--overwrite"), (put("x.png"),)),
    Fault("a second picture that exists", (*TO, "ok.npy", "--out", "x.png"), 1, ("x.png exists",), (put("x.png"),)),
    Fault("a picture that is a folder", (*TO, "x.png"), 1, ("x.png is a folder",), (folder("x.png"),)),
    Fault("a folder for a picture", (*TO, "x.png", "--overwrite"), 1, ("x.png is a folder",), (folder("x.png"),)),
    Fault("a picture behind a link to nothing", (*TO, "x.png"), 1, ("broken link",), (link("x.png", "no"),)),
    Fault("a picture below a file", (*TO, "f/x.png"), 1, ("f/x.png", "not a folder"), (put("f"),)),
    Fault("a picture below a link to nothing", (*TO, "l/x.png"), 1, ("l",), (link("l", "no"),)),
    Fault("a picture of 300 characters", (*TO, f"{LONG}.png"), 1, ("xxx",)),
    Fault("a picture of 300 characters in a new folder", (*TO, f"new/{LONG}.png"), 1, ("xxx",)),
    Fault("a picture with NUL", (*TO, "a\0.png"), 2, ("--out", "null byte")),
    Fault(
        "a picture with escapes, taken", (*TO, f"{ESCAPE}.png"), 1, (r"a\x1b[31m", "exists"), (put(f"{ESCAPE}.png"),)
    ),
    Fault("a pipe for a picture", (*TO, "p.png", "--overwrite"), 1, ("p.png",), (fifo("p.png"),)),
    Fault("the same picture twice", (*TO, "a.png", "--out", "./a.png"), 2, ("given twice",)),
    Fault("the same picture by a detour", (*TO, "a.png", "--out", "b/../a.png"), 2, ("given twice",), (folder("b"),)),
    Fault("the same picture by a link", (*TO, "a.png", "--out", "l/a.png"), 2, ("given twice",), (link("l", "."),)),
    Fault("a folder of pictures that is full", (*PICTURES, "x"), 1, ("x exists",), (folder("x", full=True),)),
    Fault("a folder of pictures that is a file", (*PICTURES, "x", "--overwrite"), 1, ("x is a file",), (put("x"),)),
    Fault("a folder of pictures behind a link to nothing", (*PICTURES, "x"), 1, ("broken link",), (link("x", "no"),)),
    Fault(
        "a figure that exists", ("inspect-schedule", "linear", "--out", "x.png"), 1, ("x.png exists",), (put("x.png"),)
    ),
    Fault("a film of a comparison", ("compare", "POINTS", "--out", "x.gif"), 2, ("--out: x.gif",)),
    Fault("samples is a file", ("sample", "r", "-n", 3, "--steps", 2), 1, ("r/samples",), (copied(), put("r/samples"))),
]


@rows(OUT_ROWS)
def test_outputs(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


# --- going on with a run -------------------------------------------------------------------------------------------

RESUME = ("train", "--resume", "r", "--steps", 40)
RAW = ("sample", "r", "--weights", "raw", "-n", 3, "--steps", 2, "--out", "x.npy")
ANOTHER_RUN = ("r/config.toml",)
INVALID = ("no valid state in r/state", "step-000000030.safetensors")


def optimizer_only(change: Callable[[Tensors, str], object]) -> Callable[[Tensors], None]:
    def change_all(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("optimizer.")]:
            change(tensors, name)

    return change_all


RESUME_ROWS = [
    Fault("resume what is not there", RESUME, 1, ("run r does not exist",)),
    Fault("resume a file", RESUME, 1, ("r is not a run folder",), (put("r"),)),
    Fault("resume an empty folder", RESUME, 1, ("r is not a run folder",), (folder("r"),)),
    Fault("resume a model file", ("train", "--resume", "POINTS/model.safetensors"), 1, ("is not a run folder",)),
    Fault("resume a link to itself", RESUME, 1, ("r",), (link("r", "r"),)),
    Fault("resume with escapes", ("train", "--resume", ESCAPE), 1, (r"a\x1b[31m",)),
    Fault("resume with NUL", ("train", "--resume", "a\0b"), 2, ("--resume",)),
    Fault("resume 300 characters", ("train", "--resume", LONG), 1, ("xxx",)),
    Fault("resume and --out", (*RESUME, "--out", "x"), 2, ("--out",), (copied(),)),
    Fault("resume and --config", (*RESUME, "--config", "r/config.toml"), 2, ("--config",), (copied(),)),
    Fault("resume to fewer steps", ("train", "--resume", "r", "--steps", 3), 2, ("--steps", "step 30"), (copied(),)),
    Fault("resume on a device that is not there", (*RESUME, "--device", "cuda:97"), 2, ("--device",), (copied(),)),
    *(
        Fault(f"resume with another {name[2:]}", (*RESUME, name, value), 1, ("--resume r", f"{name} is"), (copied(),))
        for name, value in {
            "--lr": 0.5,
            "--seed": 3,
            "--batch-size": 8,
            "--ema": 0,
            "--timesteps": 10,
            "--held-out": 5,
            "--precision": "bf16",
            "--condition-dropout": 0.5,
            "--schedule": "cosine",
            "--dataset": "two-moons",
            "--backbone": "unet",
            "--backbone.width": 8,
            "--prediction": "v",
            "--dataset.n": 400,
        }.items()
    ),
    *(
        Fault(f"config.toml edited: {new}", RESUME, 1, ANOTHER_RUN, (copied(), edited("r/config.toml", old, new)))
        for old, new in {
            "lr = 0.006": "lr = 0.003",
            "seed = 0": "seed = 1",
            "n = 500": "n = 400",
            "width = 16": "width = 8",
            'name = "eps"': 'name = "v"',
            'name = "linear"\n': 'name = "cosine"\n[x]\n',
            "beta_max = 0.02": "beta_max = 0.03",
        }.items()
        if "[x]" not in new
    ),
    Fault("config.toml emptied", RESUME, 1, ANOTHER_RUN, (copied(), put("r/config.toml", ""))),
    Fault(
        "config.toml no TOML", RESUME, 2, ("r/config.toml", "not valid TOML"), (copied(), put("r/config.toml", "[[["))
    ),
    Fault("config.toml a folder", RESUME, 1, ("r is not a run folder",), (copied(), folder("r/config.toml"))),
    Fault("config.toml a pipe", RESUME, 1, ("r is not a run folder",), (copied(), fifo("r/config.toml"))),
    Fault(
        "config.toml with a newer key",
        RESUME,
        2,
        ("r/config.toml, line", "training.future"),
        (copied(), edited("r/config.toml", "[training]\n", "[training]\nfuture = 3\n")),
    ),
    Fault(
        "config.toml with a newer table",
        RESUME,
        2,
        ("r/config.toml, line", "future"),
        (copied(), edited("r/config.toml", "[training]\n", "[future]\nx = 1\n[training]\n")),
    ),
    Fault(
        "config.toml with an unknown name",
        RESUME,
        2,
        ("r/config.toml, line", "unknown backbone 'nope'"),
        (copied(), edited("r/config.toml", 'name = "mlp"', 'name = "nope"')),
    ),
    Fault(
        "config.toml of another run",
        RESUME,
        1,
        ANOTHER_RUN,
        (copied(), lambda at, world: shutil.copy(world.images / "config.toml", at / "r" / "config.toml")),
    ),
    Fault("state a file", RESUME, 1, ("r/state",), (copied(), put("r/state"))),
    Fault("state gone, a model left", RESUME, 1, ("r",), (copied(), gone("r/state"))),
    Fault("previews a file", (*RESUME, "--preview-every", 5), 1, ("r/previews",), (copied(), put("r/previews"))),
    Fault("metrics a folder", RESUME, 1, ("r/metrics.jsonl",), (copied(), folder("r/metrics.jsonl"))),
    Fault("metrics a pipe", RESUME, 1, ("r/metrics.jsonl",), (copied(), fifo("r/metrics.jsonl"))),
    Fault("model a folder", RESUME, 1, ("r/model.safetensors",), (copied(), folder("r/model.safetensors", full=True))),
    Fault("loss.png a folder", RESUME, 1, ("r/loss.png",), (copied(), folder("r/loss.png", full=True))),
    Fault("lock a folder", RESUME, 1, ("r/lock",), (copied(), folder("r/lock"))),
    Fault("lock a link to a file", RESUME, 1, ("r/lock",), (copied(), put("v", "mine"), link("r/lock", "../v"))),
    Fault("states truncated", RESUME, 1, INVALID, (copied(), spoilt_state(lambda data: data[:-9]))),
    Fault("states empty", RESUME, 1, INVALID, (copied(), spoilt_state(lambda data: b""))),
    Fault(
        "states with a bit flipped", RESUME, 1, INVALID, (copied(), spoilt_state(lambda d: d[:-1] + bytes([d[-1] ^ 1])))
    ),
    Fault("a state that is a folder", RESUME, 1, INVALID, (copied(), folder("r/state/step-000000030.safetensors"))),
    Fault("a state that is a pipe", RESUME, 1, INVALID, (copied(), fifo("r/state/step-000000030.safetensors"))),
    Fault(
        "a state that is a link to itself",
        RESUME,
        1,
        INVALID,
        (copied(), link("r/state/step-000000030.safetensors", "step-000000030.safetensors")),
    ),
    Fault(
        "a state of another run",
        RESUME,
        1,
        ("r/",),
        (copied(), lambda at, world: shutil.copy(newest(world.images.parent, world.images.name), newest(at))),
    ),
    Fault(
        "a model in place of a state",
        RESUME,
        1,
        INVALID,
        (copied(), lambda at, _: shutil.copy(at / "r" / "model.safetensors", newest(at))),
    ),
    *(
        Fault(f"a state with {key} {shown(value)}", RESUME, 1, ("r/state",), (copied(), state(key, value)))
        for key, value in [
            *(
                ("kind", "x"),
                ("step", -1),
                ("step", True),
                ("step", "30"),
                ("step", 10**30),
                ("step", 99),
                ("step", ...),
            ),
            *(("ema_updates", -1), ("ema_updates", 10**400), ("elapsed", 3), ("elapsed", "x"), ("elapsed", -1.0)),
            *(("scaler", []), ("scaler", {"scale": "x"}), ("backbone", []), ("schedule", None), ("training", [])),
        ]
    ),
    *(
        Fault(f"a state of another {key}", RESUME, 1, ANOTHER_RUN, (copied(), state(key, value)))
        for key, value in (("prediction", {"name": "v"}), ("training.seed", 5), ("backbone.width", 8))
    ),
    *(
        Fault(f"a state with {name}", RESUME, 1, INVALID, (copied(), state(tensors=change)))
        for name, change in {
            "weights of another type": lambda t: t.update({k: v.double() for k, v in t.items()}),
            "weights missing": lambda t: [t.pop(k) for k in list(t) if k.startswith("network.")],
            "the average missing": lambda t: [t.pop(k) for k in list(t) if k.startswith("averages.")],
            "moments of another type": optimizer_only(lambda t, k: t.update({k: t[k].double()})),
            "moments of another shape": optimizer_only(lambda t, k: t.update({k: torch.zeros(3)})),
            "the optimizer missing": optimizer_only(lambda t, k: t.pop(k)),
            "one moment missing": lambda t: t.pop("optimizer.0.exp_avg"),
            "moments of another weight": lambda t: t.update({"optimizer.99.step": torch.zeros(())}),
            "moments of no weight": lambda t: t.update({"optimizer.x.step": torch.zeros(())}),
            "an unknown moment": lambda t: t.update({"optimizer.0.os": torch.zeros(())}),
            "an unknown group": lambda t: t.update({"evil.0.os": torch.zeros(())}),
        }.items()
    ),
    Fault("raw weights without a state", RAW, 1, ("state",), (copied(), gone("r/state"))),
    Fault("raw weights of a damaged state", RAW, 1, ("step-000000030",), (copied(), spoilt_state(lambda data: b"x"))),
    Fault("raw weights of a state of step x", RAW, 1, ("step-000000030",), (copied(), state("step", "x"))),
    Fault("raw weights of a state of step [1]", RAW, 1, ("step-000000030",), (copied(), state("step", [1]))),
    Fault("raw weights of a lone file", ("sample", "POINTS/model.safetensors", "--weights", "raw"), 2, ("run folder",)),
    Fault(
        "sample a run without config", ("sample", "r"), 1, ("r is not a run folder",), (copied(), gone("r/config.toml"))
    ),
    Fault("sample a run without a model", ("sample", "r"), 1, ("no model",), (copied(), gone("r/model.safetensors"))),
    Fault("sample nothing", ("sample",), 1, ("there is no trained run under",)),
    Fault("sample among pipes", ("sample",), 1, ("there is no trained run",), (fifo("runs/a/config.toml"),)),
    Fault("info of nothing", ("info",), 1, ("there is no trained run under",)),
    Fault(
        "info of a spoilt config", ("info", "r"), 2, ("r/config.toml", "TOML"), (copied(), put("r/config.toml", "[["))
    ),
    Fault("reconstruct what is not there", ("reconstruct", "no"), 1, ("no does not exist",)),
]


@rows(RESUME_ROWS)
def test_runs(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


def test_a_run_in_use_is_left_alone(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    copied()(tmp_path, world)
    with RunFolder(tmp_path / "r").lock():
        busy = (f"in use by process {os.getpid()}",)
        check(Fault("resume a run in use", RESUME, 1, busy), tmp_path, world, monkeypatch)
        check(Fault("overwrite a run in use", (*OUT, "r", "--overwrite"), 1, busy), tmp_path, world, monkeypatch)


# --- model files ---------------------------------------------------------------------------------------------------

LOAD = ("sample", "m.safetensors", "-n", 3, "--steps", 2, "--out", "x.npy")
NOT_OURS = ("m.safetensors is not a safetensors file written by difftool",)
NO_DATA = ("m.safetensors", "describe no data")
DAMAGED = ("m.safetensors is damaged",)


def overlap(head: dict[str, Any], names: list[str]) -> None:
    head[names[1]] = head[names[0]]


def swapped_size(head: dict[str, Any], names: list[str]) -> None:
    first = head[names[0]]
    first["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][1] - 4]


def scaled(factor: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor * factor for name, tensor in tensors.items()})


def half_hidden(text: str) -> str:
    """The header, with another difftool entry ahead of the real one."""
    return '{"__metadata__": {"difftool": "{}"}, ' + text[1:]


FILES: dict[str, tuple[tuple[str, ...], Step]] = {
    "empty": (NOT_OURS, put("m.safetensors", "")),
    "text": (NOT_OURS, put("m.safetensors", "these are no weights\n" * 20)),
    "JSON": (NOT_OURS, put("m.safetensors", '{"a": 1}')),
    "a pipe": (("m.safetensors", "regular file"), fifo("m.safetensors")),
    "a link to itself": (("m.safetensors",), link("m.safetensors", "m.safetensors")),
    "a link to nothing": (("m.safetensors does not exist",), link("m.safetensors", "no")),
    "a folder": (("m.safetensors is not a run folder",), folder("m.safetensors")),
    "missing": (("m.safetensors does not exist",), gone("m.safetensors")),
    "a picture": (NOT_OURS, lambda at, _: Image.new("RGB", (8, 8)).save(at / "m.safetensors", "PNG")),
    "the first bytes of a picture": (NOT_OURS, put("m.safetensors", b"\x89PNG\r\n\x1a")),
    "a pickle, renamed": (NOT_OURS, lambda at, _: torch.save({"a": torch.zeros(3)}, at / "m.safetensors")),
    **{f"{n} bytes": (NOT_OURS, spoilt(lambda data, n=n: data[:n])) for n in (1, 7, 8, 9)},
    "ends in the header": (NOT_OURS, spoilt(lambda data: data[: ends(data) // 2])),
    "ends with the header": (NOT_OURS, spoilt(lambda data: data[: ends(data)])),
    "ends in the tensors": (NOT_OURS, spoilt(lambda data: data[: (ends(data) + len(data)) // 2])),
    "one byte short": (NOT_OURS, spoilt(lambda data: data[:-1])),
    "one byte long": (NOT_OURS, spoilt(lambda data: data + b"\0")),
    "a bit flipped in the first tensor": (DAMAGED, flipped(ends)),
    "a bit flipped in the last tensor": (DAMAGED, flipped(lambda data: len(data) - 1)),
    "a bit flipped in the metadata": (DAMAGED, flipped(lambda data: data.index(b"beta_max"))),
    "a bit flipped in a tensor's name": (DAMAGED, flipped(lambda data: data.index(b'"embedding') + 2)),
    "a bit flipped in the header's length": (NOT_OURS, flipped(lambda data: 0)),
    "a bit flipped in the brace": (NOT_OURS, flipped(lambda data: 8)),
    **{
        f"a header of {shown(n)} bytes": (NOT_OURS, spoilt(lambda data, n=n: struct.pack("<Q", n) + data[8:]))
        for n in (0, 1, 17 * 2**20, 100 * 2**20, 2**63, 2**64 - 1)
    },
    "20 MB of header": (NOT_OURS, header(lambda head, _: head["__metadata__"].update(x="y" * 20_000_000))),
    "overlapping tensors": (NOT_OURS, header(overlap)),
    "a hole between tensors": (NOT_OURS, header(swapped_size)),
    "a tensor less in the header": (NOT_OURS, header(lambda head, names: head.pop(names[-1]))),
    "an offset of 2^63": (NOT_OURS, header(lambda head, names: head[names[0]].update(data_offsets=[0, 2**63]))),
    "a shape of 2^124": (NOT_OURS, header(lambda head, names: head[names[0]].update(shape=[2**62, 2**62]))),
    "a shape of -1": (NOT_OURS, header(lambda head, names: head[names[0]].update(shape=[-1]))),
    "an unknown type": (NOT_OURS, header(lambda head, names: head[names[0]].update(dtype="Q7"))),
    "another type": (NOT_OURS, header(lambda head, names: head[names[0]].update(dtype="F64"))),
    "another type of as many bytes": (DAMAGED, header(lambda head, names: head[names[0]].update(dtype="I32"))),
    "a name with escapes": (
        ("m.safetensors",),
        header(lambda head, names: head.update({"\x1b[31m": head.pop(names[0])})),
    ),
    "a tensor twice in the header": (
        NOT_OURS,
        header_text(
            lambda text: (
                '{"network.first.weight": ' + json.dumps(json.loads(text)["network.first.weight"]) + ", " + text[1:]
            )
        ),
    ),
    "metadata twice in the header": (NOT_OURS, header_text(half_hidden)),
    "no metadata": (NOT_OURS, header(lambda head, _: head.pop("__metadata__"))),
    "metadata that are a list": (NOT_OURS, header(lambda head, _: head.update(__metadata__=[]))),
    "metadata of another tool": (NOT_OURS, header(lambda head, _: head.update(__metadata__={"format": "pt"}))),
    "an envelope that is no JSON": (NOT_OURS, envelope("{")),
    "an envelope that is a list": (NOT_OURS, envelope("[1]")),
    "an envelope without digest": (NOT_OURS, envelope('{"document": "{}"}')),
    "an envelope whose digest is a number": (NOT_OURS, envelope('{"document": "{}", "sha256": 3}')),
    "an envelope with a digest of nothing": (DAMAGED, envelope('{"document": "{}", "sha256": ""}')),
    "an envelope 100,000 deep": (NOT_OURS, envelope("[" * 100_000)),
    "an envelope with keys twice": (
        NOT_OURS,
        header(
            lambda head, _: head["__metadata__"].update(
                difftool='{"document": "{}", ' + head["__metadata__"]["difftool"][1:]
            )
        ),
    ),
    "a document that is no JSON": (NOT_OURS, document(lambda text: text[:-1])),
    "a document that is empty": (NOT_OURS, document(lambda text: "")),
    "a document that is a list": (NOT_OURS, document(lambda text: "[1]")),
    "a document that is null": (NOT_OURS, document(lambda text: "null")),
    "a document of nothing": (NOT_OURS, document(lambda text: "{}")),
    "a document 100,000 deep": (NOT_OURS, document(lambda text: "[" * 100_000)),
    "a document with a deep part": (NOT_OURS, document(lambda t: t[:-1] + ', "z": ' + "[" * 5000 + "]" * 5000 + "}")),
    "a document with 5,000 digits": (NOT_OURS, document(lambda text: f'{text[:-1]}, "z": {DIGITS}}}')),
    "a document with keys twice": (NOT_OURS, document(lambda text: '{"kind": "state", ' + text[1:])),
    "a document with NaN": (("m.safetensors",), document(lambda text: text.replace('"step": 30', '"step": NaN'))),
    "a document with infinity": (
        ("data.std: must be a finite number",),
        document(lambda t: re.sub(r'"std": [\d.]+', '"std": Infinity', t)),
    ),
    "a document with half a character": (("m.safetensors",), document(lambda text: text.replace('"mlp"', '"\\ud800"'))),
    "NaN for weights": (("x.npy", "NaN"), model(tensors=scaled(float("nan")))),
    "weights of 10^38": (("x.npy", "NaN"), model(tensors=scaled(1e38))),
    "no weights": (("weights do not fit", "is missing", "more"), model(tensors=lambda t: t.clear())),
    "a weight missing": (
        ("do not fit", "first.weight is missing"),
        model(tensors=lambda t: t.pop("network.first.weight")),
    ),
    "a weight too many": (("do not fit", r"\x1b[31m"), model(tensors=lambda t: t.update({"\x1b[31m": torch.zeros(1)}))),
    "a weight called 10^6 x": (("do not fit", "xxx"), model(tensors=lambda t: t.update({"x" * 10**6: torch.zeros(1)}))),
    "weights of half precision in a file that does not say so": (
        ("do not fit", "float16"),
        model(tensors=lambda t: t.update({k: v.half() for k, v in t.items()})),
    ),
    "weights of double precision": (
        ("do not fit", "float64"),
        model(tensors=lambda t: t.update({k: v.double() for k, v in t.items()})),
    ),
    "weights turned": (
        ("do not fit",),
        model(tensors=lambda t: t.update({k: v.t().contiguous() for k, v in t.items()})),
    ),
    "weights of a U-Net": (
        ("do not fit its mlp",),
        lambda at, world: checkpoint.save(
            at / "m.safetensors",
            loaded(world.images / "model.safetensors")[0],
            loaded(world.points / "model.safetensors")[1],
        ),
    ),
    "the metadata of a U-Net": (
        ("do not fit its unet",),
        lambda at, world: checkpoint.save(
            at / "m.safetensors",
            loaded(world.points / "model.safetensors")[0],
            loaded(world.images / "model.safetensors")[1],
        ),
    ),
    "a training state": (
        ("training state", "model.safetensors"),
        lambda at, world: shutil.copy(newest(world.points.parent, world.points.name), at / "m.safetensors"),
    ),
}
DOCUMENTS: list[tuple[str, object, tuple[str, ...]]] = [
    *(
        ("backbone.name", name, ("m.safetensors: its metadata are refused: unknown backbone ",))
        for name in ("../../x", "os:system", "difftool:Model", "\x1b[31mx", "", "x" * 10**6, "mlp\n")
    ),
    *(("backbone.name", name, ("name no backbone",)) for name in (3, None, ["mlp"])),
    ("schedule.name", "../../x", ("unknown schedule ",)),
    ("prediction.name", "\x1b[31m", ("unknown prediction ", r"\x1b[31m")),
    ("dataset.name", "../../x", ("unknown dataset '../../x'",)),
    ("weighting.name", "x" * 10**6, ("unknown weighting ",)),
    *((part, ..., (part,)) for part in ("backbone", "schedule", "prediction", "training")),
    *(("backbone", value, ("backbone",)) for value in ([1], None)),
    ("training", [1], ("training",)),
    *(("backbone.width", value, ("m.safetensors", "width")) for value in (10**12, 0, True, "16", 16.0, None, 10**400)),
    ("backbone.depth", 10**9, ("m.safetensors", "depth")),
    ("backbone.depth", 64, ("weights do not fit its mlp", "more")),
    ("backbone.time_dim", 10**9, ("m.safetensors", "time_dim")),
    ("backbone.activation", "os", ("m.safetensors", "activation")),
    ("backbone.evil", 1, ("evil",)),
    ("backbone.a\x1b", 1, (r"\x1b",)),
    *(("training.timesteps", value, ("m.safetensors", "timesteps")) for value in (10**12, 0, True)),
    ("training.threads", 10**9, ("m.safetensors", "threads")),
    ("training.lr", -1.0, ("m.safetensors", "lr")),
    ("training.evil", 1, ("m.safetensors", "evil")),
    ("training.self_condition", True, ("do not fit",)),
    ("training.learn_variance", True, ("do not fit",)),
    ("schedule.beta_max", 1.0, ("m.safetensors", "beta_max")),
    ("schedule.beta_min", 0.5, ("m.safetensors", "beta_max")),
    ("data", ..., NO_DATA),
    ("data", [1], NO_DATA),
    *(("data.shape", shape, NO_DATA) for shape in ([10**12], [], [0], [True], [2.0], "2", [2] * 5, [65536] * 3)),
    ("data.shape", [2, 8, 8], NO_DATA),  # points have one axis
    *(("data.shift", value, NO_DATA) for value in ([], [0.0] * 3, [1e300, 0.0], ["nan", 0.0], None)),
    *(("data.scale", value, NO_DATA) for value in ([0.0, 1.0], [-1.0, 1.0], [1.0] * 70_000)),
    *(("data.bounds", value, NO_DATA) for value in ([1.0, -1.0], [0.0], "x", [0.0, 1e300])),
    *(("data.std", value, NO_DATA) for value in (0, -1.0, True)),
    *(("data.class_names", value, NO_DATA) for value in (["a" * 2000], "ab", ["a"] * 100_001, [1])),
    ("data.class_names", ["\x1b[31ma", "b"], ("do not fit",)),
    *(("step", value, ("m.safetensors", "malformed")) for value in (-1, True, 1.5, ...)),
    ("step", 10**400, ("m.safetensors", "step: a whole number of more than 64 bits")),
    *(("weights", value, ("m.safetensors", "malformed")) for value in ("best", None, ...)),
    ("kind", "state", ("holds a training state",)),
    *(("kind", value, ("m.safetensors",)) for value in (None, ...)),
    ("format", 2, ("was written by a newer difftool (format 2)",)),
    ("format", 10**15, ("was written by a newer difftool",)),
    *(("format", value, NOT_OURS) for value in (1.5, "1", True, 0)),
]
MODEL_ROWS = [
    *(Fault(f"model: {name}", LOAD, 1, pieces, (step,)) for name, (pieces, step) in FILES.items()),
    *(
        Fault(f"model with {key!r} {'gone' if value is ... else shown(value)!r}", LOAD, 1, pieces, (model(key, value),))
        for key, value, pieces in DOCUMENTS
    ),
    *(
        Fault(f"info of a model: {name}", ("info", "m.safetensors"), 1, FILES[name][0], (FILES[name][1],))
        for name in ("empty", "a pipe", "a pickle, renamed", "one byte short", "overlapping tensors", "no metadata")
    ),
    *(
        Fault(
            f"a {suffix} file is never opened",
            ("sample", f"m{suffix}"),
            1,
            (f"m{suffix}", "run code"),
            (fifo(f"m{suffix}"),),
        )
        for suffix in (".pt", ".ckpt", ".pth", ".pkl")
    ),
    Fault(
        "a pickle",
        ("sample", "m.pt"),
        1,
        ("m.pt is not a safetensors file written by difftool",),
        (lambda at, _: torch.save({"a": torch.zeros(3)}, at / "m.pt"),),
    ),
    Fault("model without an end", ("sample", "/dev/zero"), 1, ("/dev/zero", "regular file")),
    Fault("model a device", ("sample", "/dev/null"), 1, ("/dev/null", "regular file")),
    Fault("model with escapes", ("sample", ESCAPE), 1, (r"a\x1b[31m", "does not exist")),
    Fault("model with NUL", ("sample", "a\0b"), 2, ("null byte",)),
    Fault("model of 300 characters", ("sample", LONG), 1, ("xxx",)),
    Fault(
        "the plugin of a model",
        LOAD,
        1,
        ("unknown backbone 'transformer'", "vit 2.1", "not installed"),
        (
            lambda at, world: checkpoint.save(
                at / "m.safetensors",
                loaded(world.points / "model.safetensors")[0],
                {
                    **loaded(world.points / "model.safetensors")[1],
                    "backbone": {"name": "transformer"},
                    "plugins": {"vit": "2.1"},
                },
            ),
        ),
    ),
    Fault(
        "compare a model of NaN",
        ("compare", "m.safetensors", "-n", 4, "--calls", 2, "--reference", 4, "--samplers", "ddim", "--out", "x.png"),
        1,
        ("not finite",),
        (model(tensors=scaled(float("nan"))),),
    ),
    Fault(
        "a class with escapes",
        ("sample", "m.safetensors", "--label", "x"),
        2,
        (r"\x1b[31m", "no class 'x'"),
        (model("data.class_names", ["\x1b[31ma", "b", "c", "d\n"], of="LABELS"),),
    ),
]


@rows(MODEL_ROWS)
def test_model_files(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


# --- images --------------------------------------------------------------------------------------------------------

FOLDER = ("train", *IMAGES[:2], "--dataset", "image-folder", "--dataset.path", "i", "--dataset.size", 8, *IMAGES[6:])
FOLDER = (*FOLDER, "--steps", 2, "--out", "r")
BAD_IMAGES: dict[str, tuple[str, Step]] = {
    "empty": ("empty", put("i/b.png", "")),
    "text": ("not an image", put("i/b.png", "hello")),
    "truncated": ("truncated", truncated_image("i/b.png")),
    "a bomb": ("million pixels", bomb("i/b.png")),
    "a smaller bomb": ("million pixels", bomb("i/b.png", 9500)),
    "SVG": ("not an image", put("i/b.png", "<svg/>")),
    "a link to nothing": ("No such file", link("i/b.png", "no")),
}
GOOD = image("i/a.png")


def trained(*arguments: object) -> Step:
    """A run trained before the fault."""

    def step(_: Path, __: World) -> None:
        outcome = invoke(*arguments)
        assert outcome.code == 0, outcome.err

    return step


def exchanged(first: str, second: str) -> Step:
    """Two images under each other's name."""

    def step(at: Path, _: World) -> None:
        one, other = at / "i" / f"{first}.png", at / "i" / f"{second}.png"
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)

    return step


IMAGE_ROWS = [
    Fault("images missing", FOLDER, 1, ("/i does not exist",)),
    Fault("images of an empty folder", FOLDER, 1, ("no images in", "/i ", ".png .jpg"), (folder("i"),)),
    Fault("images of a folder of texts", FOLDER, 1, ("no images in", ".png .jpg"), (put("i/a.txt"), put("i/b.md"))),
    Fault("images of a file", FOLDER, 1, ("/i is not a folder",), (put("i"),)),
    Fault("images of a link to itself", FOLDER, 1, ("/i",), (link("i", "i"),)),
    Fault("images of a folder that holds itself", FOLDER, 1, ("no images in",), (folder("i"), link("i/j", "."))),
    Fault("images that are pipes", FOLDER, 1, ("no images in",), (fifo("i/a.png"),)),
    Fault("images that are hidden", FOLDER, 1, ("no images in",), (image("i/.a.png"),)),
    Fault("images with NUL", (*FOLDER, "--dataset.path", "a\0b"), 2, ("--dataset.path",)),
    Fault("images at 300 characters", (*FOLDER, "--dataset.path", LONG), 1, ("xxx",)),
    Fault("images of a stranger's home", (*FOLDER, "--dataset.path", "~nobody9/x"), 2, ("--dataset.path", "~nobody9")),
    Fault("images of five channels", (*FOLDER, "--dataset.channels", 5), 2, ("--dataset.channels", "4"), (GOOD,)),
    Fault("images of 12 bits", (*FOLDER, "--dataset.bits", 12), 2, ("--dataset.bits", "8 or 16"), (GOOD,)),
    Fault("images cropped left", (*FOLDER, "--dataset.crop", "left"), 2, ("--dataset.crop", "random"), (GOOD,)),
    Fault(
        "images moved by no name", (*FOLDER, "--dataset.augment", "flip,x"), 2, ("--dataset.augment", "rotate"), (GOOD,)
    ),
    Fault(
        "images moved twice", (*FOLDER, "--dataset.augment", "flip,flip"), 2, ("--dataset.augment", "twice"), (GOOD,)
    ),
    Fault(
        "weights of no folders",
        (*FOLDER, "--dataset.weights", "1,2"),
        2,
        ("--dataset.weights", "--dataset.more"),
        (GOOD,),
    ),
    Fault("weights of 0", (*FOLDER, "--dataset.weights", "0"), 2, ("--dataset.weights", "1"), (GOOD,)),
    Fault("one folder twice", (*FOLDER, "--dataset.more", "i"), 1, ("more", "/i is named twice"), (GOOD,)),
    Fault("a second folder that is missing", (*FOLDER, "--dataset.more", "j"), 1, ("/j does not exist",), (GOOD,)),
    Fault("captions missing", (*FOLDER, "--dataset.captions", "txt"), 1, ("captions", "a.png has no caption"), (GOOD,)),
    Fault("captions of no words", (*FOLDER, "--dataset.words", 0), 2, ("--dataset.words",), (GOOD,)),
    Fault(
        "captions of rubbish",
        (*FOLDER, "--dataset.captions", "txt"),
        1,
        ("/i/a.txt is not UTF-8 text",),
        (GOOD, put("i/a.txt", b"\xff\xfe")),
    ),
    Fault(
        "captions and tokens",
        (*FOLDER, "--dataset.captions", "txt", "--dataset.tokens", "x.npy"),
        2,
        ("captions",),
        (GOOD,),
    ),
    Fault("images of 7x7 for a U-Net", (*FOLDER, "--dataset.size", 7), 2, ("7x7", "6x6 or 8x8"), (GOOD,)),
    Fault("memory nan", (*FOLDER, "--dataset.memory", "nan"), 2, ("--dataset.memory",), (GOOD,)),
    Fault("the only image held out", (*FOLDER, "--held-out", 1), 2, ("--held-out", "1 of 1"), (GOOD,)),
    *(
        Fault(f"image: {name}", FOLDER, 1, ("/i/b.png", piece, "--dataset.skip-bad"), (GOOD, step))
        for name, (piece, step) in BAD_IMAGES.items()
    ),
    *(
        Fault(
            f"image: {name}, not held in memory",
            (*FOLDER, "--dataset.memory", 0, "--workers", 0),
            1,
            ("/i/b.png", BAD_IMAGES[name][0], "--dataset.skip-bad"),
            (GOOD, BAD_IMAGES[name][1]),
        )
        for name in ("truncated", "a bomb")
    ),
    Fault(
        "an image with escapes",
        FOLDER,
        1,
        (r"\x1b[31m", "not an image"),
        (GOOD, put(f"i/{ESCAPE}.png")),
    ),
    Fault(
        "all images bad",
        (*FOLDER, "--dataset.skip-bad"),
        1,
        ("none of the 2 image files",),
        (put("i/a.png"), put("i/b.png", "")),
    ),
    *(
        Fault(f"a run whose images {name}", ("train", "--resume", "r", "--steps", 4), 1, ("image-folder", piece), steps)
        for name, piece, steps in (
            ("grew", "changed", (GOOD, image("i/b.png"), trained(*FOLDER), image("i/c.png"))),
            ("shrank", "changed", (GOOD, image("i/b.png"), trained(*FOLDER), gone("i/b.png"))),
            ("changed places", "changed", (GOOD, image("i/b.png", (8, 8), 3), trained(*FOLDER), exchanged("a", "b"))),
            ("were repainted", "changed", (GOOD, trained(*FOLDER), image("i/a.png", (9, 9), 3))),
            ("are gone", "/i does not exist", (GOOD, trained(*FOLDER), gone("i"))),
        )
    ),
    *(
        Fault(f"noise: {name}", ("noise", "i/b.png"), 1, ("i/b.png", BAD_IMAGES[name][0]), (GOOD, BAD_IMAGES[name][1]))
        for name in ("truncated", "a bomb")
    ),
    Fault("noise of nothing", ("noise", "no.png"), 1, ("no.png does not exist",)),
    Fault("noise of a folder", ("noise", "i"), 1, ("i is not a file",), (folder("i"),)),
    Fault("noise of a pipe", ("noise", "i.png"), 1, ("i.png",), (fifo("i.png"),)),
    Fault("noise of a device", ("noise", "/dev/zero"), 1, ("/dev/zero",)),
    Fault("noise of one good image and none", ("noise", "i/a.png", "no.png"), 1, ("no.png",), (GOOD,)),
    Fault("reconstruct a text", ("reconstruct", "IMAGES", "x.png"), 1, ("x.png",), (put("x.png"),)),
    *(
        Fault(
            f"start at: {name}",
            ("sample", "IMAGES", "--init", "i/b.png"),
            1,
            ("--init", "i/b.png", piece),
            (GOOD, step),
        )
        for name, (piece, step) in {
            "truncated": BAD_IMAGES["truncated"],
            "a bomb": BAD_IMAGES["a bomb"],
            "a folder": ("", folder("i/b.png")),
            "a pipe": ("", fifo("i/b.png")),
        }.items()
    ),
    Fault(
        "paint on nothing", ("sample", "IMAGES", "--inpaint", "no.png", "--mask", "i/a.png"), 1, ("--inpaint",), (GOOD,)
    ),
    Fault(
        "a mask that is not there",
        ("sample", "IMAGES", "--inpaint", "i/a.png", "--mask", "no.png"),
        1,
        ("--mask",),
        (GOOD,),
    ),
    Fault(
        "a mask that waits",
        ("sample", "IMAGES", "--inpaint", "i/a.png", "--mask", "p"),
        1,
        ("--mask",),
        (GOOD, fifo("p")),
    ),
]


@rows(IMAGE_ROWS)
def test_images(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


# --- arrays and tables ---------------------------------------------------------------------------------------------


def stored(name: str, make: Callable[[], Any], keys: Mapping[str, Callable[[], Any]] | None = None) -> Step:
    """A .npy file of an array, or a .npz file of several."""

    def step(at: Path, _: World) -> None:
        if keys is None:
            np.save(at / name, make())
        else:
            np.savez(at / name, **{key: value() for key, value in keys.items()})

    return step


def cut(name: str, size: int) -> Step:
    """A file that ends after so many bytes."""
    return lambda at, _: os.truncate(at / name, size)


def array(path: str, *arguments: object) -> tuple[object, ...]:
    return ("train", "--dataset", "array", "--dataset.path", path, *arguments, "--steps", 2, "--out", "r")


def rows_of(*lines: str) -> Step:
    return put("t.csv", "\n".join(lines) + "\n")


POINTS_FILE = stored("x.npy", lambda: np.arange(20.0).reshape(10, 2))
PIXELS_FILE = stored("x.npy", lambda: np.arange(640, dtype=np.uint8).reshape(10, 8, 8))
SEVERAL = stored(
    "x.npz", list, {"a": lambda: np.zeros((3, 2)), "b": lambda: np.zeros((3, 4, 4)), "y": lambda: np.arange(2)}
)
LABELLED_TABLE = rows_of("x,y,kind", "1,2,a", "3,4,b")
ARRAY_ROWS = [
    Fault("array missing", array("no.npy"), 1, ("no.npy does not exist",)),
    Fault("array of a folder", array("x.npy"), 1, ("x.npy is not a file",), (folder("x.npy"),)),
    Fault("array of a pipe", array("x.npy"), 1, ("x.npy is not a file",), (fifo("x.npy"),)),
    Fault(
        "array of a .pt file",
        array("x.pt"),
        1,
        ("suffixes", ".npy, .npz, .safetensors, .csv, .tsv, .parquet"),
        (put("x.pt"),),
    ),
    Fault("array with escapes", array(f"{ESCAPE}.npy"), 1, (r"\x1b[31m",), (put(f"{ESCAPE}.npy"),)),
    *(
        Fault(f"array {kind} of {name}", array(f"x.{kind}"), 1, (f"x.{kind}", piece), (put(f"x.{kind}", content),))
        for kind in ("npy", "npz", "safetensors")
        for name, content, piece in (
            ("nothing", "", "cannot be read"),
            ("text", "hello, hello, hello", "cannot be read"),
            ("bytes", bytes(range(256)) * 8, "cannot be read"),
        )
    ),
    Fault("array cut off", array("x.npy"), 1, ("x.npy", "ends too early"), (POINTS_FILE, cut("x.npy", 200))),
    Fault("archive cut off", array("x.npz"), 1, ("x.npz", "cannot be read"), (SEVERAL, cut("x.npz", 600))),
    Fault(
        "array of texts", array("x.npy"), 1, ("no array of numbers",), (stored("x.npy", lambda: np.array(["a", "b"])),)
    ),
    Fault(
        "array of objects",
        array("x.npy"),
        1,
        ("never unpickled",),
        (stored("x.npy", lambda: np.array([{}], dtype=object)),),
    ),
    Fault("array of one number", array("x.npy"), 1, ("single number",), (stored("x.npy", lambda: np.float64(3)),)),
    Fault("array of no items", array("x.npy"), 1, ("no numbers",), (stored("x.npy", lambda: np.zeros((0, 2))),)),
    Fault(
        "array of complex numbers",
        array("x.npy"),
        1,
        ("no array of numbers",),
        (stored("x.npy", lambda: np.ones((3, 2)) * 1j),),
    ),
    Fault(
        "array with NaN",
        array("x.npy"),
        1,
        ("NaN", "item 1"),
        (stored("x.npy", lambda: np.array([[1.0], [np.nan], [2.0]])),),
    ),
    Fault(
        "archive of several", array("x.npz"), 1, ("several arrays", "a (3, 2) float64", "--dataset.items"), (SEVERAL,)
    ),
    Fault(
        "archive without a key", array("x.npz", "--dataset.items", "z"), 1, ("items", "has no z", "a, b, y"), (SEVERAL,)
    ),
    Fault(
        "archive with two labels for three",
        array("x.npz", "--dataset.items", "a", "--dataset.labels", "y"),
        1,
        ("2 labels for 3 items",),
        (SEVERAL,),
    ),
    Fault(
        "labels of no file", array("x.npy", "--dataset.labels", "no.npy"), 1, ("no.npy", "No such file"), (POINTS_FILE,)
    ),
    Fault("labels of no key", array("x.npy", "--dataset.labels", "y"), 1, ("labels", "has no y"), (POINTS_FILE,)),
    Fault(
        "labels of fractions",
        array("x.npy", "--dataset.labels", "y.npy"),
        1,
        ("labels", "whole numbers", "--dataset.vectors"),
        (POINTS_FILE, stored("y.npy", lambda: np.arange(10) / 2)),
    ),
    Fault("labels of two axes", array("x.npy", "--dataset.labels", "x.npy"), 1, ("labels", "(N,)"), (POINTS_FILE,)),
    Fault("points of images", array("x.npy", "--dataset.form", "points"), 1, ("points have one axis",), (PIXELS_FILE,)),
    Fault("images of points", array("x.npy", "--dataset.form", "image"), 1, ("images have the axes",), (POINTS_FILE,)),
    Fault(
        "images of wide numbers",
        array("x.npy", "--dataset.form", "image"),
        1,
        ("reach from", "--dataset.form array"),
        (stored("x.npy", lambda: np.arange(640.0).reshape(10, 8, 8)),),
    ),
    Fault(
        "images of seven channels",
        array("x.npy", "--dataset.form", "image"),
        1,
        ("layout", "1 to 4 channels"),
        (stored("x.npy", lambda: np.zeros((5, 7, 8, 9), np.uint8)),),
    ),
    Fault(
        "images whose channels are anywhere",
        array("x.npy"),
        1,
        ("layout", "first or last"),
        (stored("x.npy", lambda: np.zeros((5, 3, 8, 4), np.uint8)),),
    ),
    Fault(
        "shape of other numbers",
        array("x.npy", "--dataset.shape", "3,3"),
        1,
        ("shape", "3x3 has 9 numbers", "2"),
        (POINTS_FILE,),
    ),
    Fault("shape of zero", array("x.npy", "--dataset.shape", "0,2"), 2, ("--dataset.shape",), (POINTS_FILE,)),
    Fault("form unknown", array("x.npy", "--dataset.form", "video"), 2, ("--dataset.form", "image"), (POINTS_FILE,)),
    Fault(
        "gray points",
        array("x.npy", "--dataset.condition", "gray"),
        1,
        ("condition", "computed from images"),
        (POINTS_FILE,),
    ),
    Fault(
        "gray images of gray ones",
        array("x.npy", "--dataset.condition", "gray"),
        1,
        ("condition", "3 channels"),
        (PIXELS_FILE,),
    ),
    Fault(
        "a large compressed array",
        array("x.npz", "--dataset.memory", 0),
        1,
        ("--dataset.memory", "compressed"),
        (lambda at, _: np.savez_compressed(at / "x.npz", x=np.zeros((9, 2))),),
    ),
    Fault(
        "a large array by columns",
        array("x.npy", "--dataset.memory", 0),
        1,
        ("--dataset.memory", "columns first"),
        (stored("x.npy", lambda: np.asfortranarray(np.zeros((9, 2)))),),
    ),
    Fault("a large table", array("t.csv", "--dataset.memory", 0), 1, ("--dataset.memory", ".npy"), (LABELLED_TABLE,)),
    Fault("table empty", array("t.csv"), 1, ("t.csv is empty",), (put("t.csv", ""),)),
    Fault("table of a header", array("t.csv"), 1, ("no rows below its header",), (rows_of("x,y"),)),
    Fault("table of texts", array("t.csv"), 1, ("no column of numbers",), (rows_of("a,b", "c,d"),)),
    Fault("table of bytes", array("t.csv"), 1, ("t.csv", "UTF-8"), (put("t.csv", bytes(range(128, 256))),)),
    Fault(
        "table in Latin-1 further down",
        array("t.csv"),
        1,
        ("t.csv", "UTF-8"),
        (put("t.csv", "x,y\n1,2\n3,é\n".encode("latin1")),),
    ),
    Fault(
        "table with a text among numbers",
        array("t.csv"),
        1,
        ("line 3, column y", "'abc' is not a number"),
        (rows_of("x,y", "1,2", "3,abc"),),
    ),
    Fault(
        "table with a hole",
        array("t.csv"),
        1,
        ("line 3, column y", "a number is missing"),
        (rows_of("x,y", "1,2", "3,"),),
    ),
    Fault(
        "table with a short row", array("t.csv"), 1, ("line 3", "1 fields", "2 columns"), (rows_of("x,y", "1,2", "3"),)
    ),
    Fault("table with a long row", array("t.csv"), 1, ("line 2", "3 fields", "2 columns"), (rows_of("x,y", "1,2,3"),)),
    Fault("table with an open quote", array("t.csv"), 1, ("t.csv", "cannot be read"), (put("t.csv", 'x,y\n1,"2\n'),)),
    Fault("table with two columns of a name", array("t.csv"), 1, ("two columns called x",), (rows_of("x,x", "1,2"),)),
    Fault("table with NaN", array("t.csv"), 1, ("NaN", "item 1"), (rows_of("x,y", "1,2", "nan,3", "4,5"),)),
    Fault(
        "table without a column",
        array("t.csv", "--dataset.items", "x,z"),
        1,
        ("items", "has no z", "x, y, kind"),
        (LABELLED_TABLE,),
    ),
    Fault(
        "table with a column of texts",
        array("t.csv", "--dataset.vectors", "kind"),
        1,
        ("vectors", "kind", "holds texts"),
        (LABELLED_TABLE,),
    ),
    Fault("parquet of text", array("t.parquet"), 1, ("t.parquet",), (put("t.parquet", "hello"),)),
    *(
        Fault(f"a run whose array {name}", ("train", "--resume", "r", "--steps", 4), 1, ("array", piece), steps)
        for name, piece, steps in (
            ("changed", "changed", (POINTS_FILE, trained(*array("x.npy")), stored("x.npy", lambda: np.eye(10)[:, :2]))),
            ("is gone", "x.npy does not exist", (POINTS_FILE, trained(*array("x.npy")), gone("x.npy"))),
        )
    ),
]


@pytest.mark.parametrize("fault", ARRAY_ROWS, ids=lambda fault: fault.id)
def test_arrays(fault: Fault, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fault, tmp_path, world, monkeypatch)


# --- what must work all the same -----------------------------------------------------------------------------------


class Fine(NamedTuple):
    """A command that only looks wrong, and pieces of stderr."""

    id: str
    arguments: Sequence[object]
    pieces: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


FINE = [
    Fine("one image", FOLDER, ("1 x 3x8x8",), (GOOD,)),
    Fine("five points for a batch of 1,000", (*OUT, "r", "--dataset.n", 5, "--batch-size", 1000)),
    Fine("a pipe among the images", FOLDER, ("1 x 3x8x8",), (GOOD, fifo("i/b.png"))),
    Fine(
        "bad images left out",
        (*FOLDER, "--dataset.skip-bad", "--dry-run"),
        ("warning: left out 3 of 4", "/i/b.png: the file is empty", "/i/c.png", r"\x1b[31m"),
        (GOOD, put("i/b.png", ""), put("i/c.png"), put(f"i/{ESCAPE}.png")),
    ),
    Fine("an empty config", ("train", "--dry-run", "--config", "c.toml"), (), (put("c.toml", ""),)),
    Fine("--out an empty folder", (*OUT, "r"), (), (folder("r"),)),
    Fine("--out a link to an empty folder", (*OUT, "l"), (), (folder("r"), link("l", "r"))),
    Fine("--out with escapes", (*OUT, ESCAPE), (r"a\x1b[31m",)),
    Fine("--out that is no text", (*OUT, "\udcff"), (r"\udcff",)),
    Fine("overwriting a run", (*OUT, "r", "--overwrite"), (), (copied(),)),
    Fine("no steps at all", (*OUT, "r", "--steps", 0)),
    Fine("metrics of bytes", RESUME, ("after step 30",), (copied(), put("r/metrics.jsonl", bytes(range(256)) * 9))),
    Fine(
        "metrics that end in mid-line",
        RESUME,
        ("after step 30",),
        (copied(), put("r/metrics.jsonl", '{"step": 1, "lo')),
    ),
    Fine(
        "metrics of wrong types",
        RESUME,
        ("after step 30",),
        (
            copied(),
            put(
                "r/metrics.jsonl",
                '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e999, "lr": "x"}\n{"step": 3, "loss": true}\n[[[[\n'
                '{"step": 4, "loss": 1, "loss_quartiles": ["x", {}]}\n{"step": 5, "loss": 1, "held_out_loss": "x"}\n',
            ),
        ),
    ),
    Fine(
        "facts of odd metrics",
        ("info", "r", "--json"),
        (),
        (copied(), put("r/metrics.jsonl", '{"step": 1, "loss": NaN}')),
    ),
    Fine("facts of metrics that wait", ("info", "r"), (), (copied(), fifo("r/metrics.jsonl"))),
    Fine("facts of a run with a spoilt model", ("info", "r"), (), (copied(), put("r/model.safetensors"))),
    Fine("facts of a run without metrics", ("info", "r"), (), (copied(), gone("r/metrics.jsonl"))),
    Fine("sampling beside a spoilt config", ("sample", "r", *SAMPLE[2:]), (), (copied(), put("r/config.toml", "[["))),
    Fine(
        "a damaged neighbour",
        ("sample", "-n", 3, "--steps", 2),
        (),
        (copied("runs/a"), put("runs/b/config.toml", "[[")),
    ),
    Fine(
        "a neighbour that waits", ("sample", "-n", 3, "--steps", 2), (), (copied("runs/a"), fifo("runs/b/config.toml"))
    ),
]


@pytest.mark.parametrize("fine", FINE, ids=[fine.id for fine in FINE])
def test_what_only_looks_wrong(fine: Fine, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in fine.steps:
        step(tmp_path, world)
    with limited():
        outcome = invoke(*map(world.argument, fine.arguments))
    assert outcome.code == 0, outcome.err
    assert outcome.errors == []
    assert not [c for c in outcome.err if not c.isprintable() and c != "\n"]
    for piece in fine.pieces:
        assert piece in outcome.err
    assert TEMPORARY not in " ".join(map(str, tmp_path.rglob("*")))


# --- processes: streams, surroundings, modes, limits ------------------------------------------------------------------

PROGRAM = f"{sys.executable} -m difftool"


def shell(
    command: str, cwd: Path, env: Mapping[str, str | None] | None = None, limit: Callable[[], object] | None = None
) -> Outcome:
    """A line of bash, `difftool` in it standing for the program."""
    line = re.sub(r"\bdifftool\b", PROGRAM.replace("\\", r"\\"), command, count=1)
    changed = {**os.environ, **(env or {})}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        preexec_fn=limit,
    )
    return Outcome(done.returncode, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))


def command(*arguments: object) -> str:
    return " ".join(["difftool", *map(str, last_of(arguments))])


class Streams(NamedTuple):
    """A command in a shell: its exit code, what is on stdout (None: whatever), what is on stderr, what exists then."""

    id: str
    line: str
    code: int
    out: str | None
    err: str | None
    made: tuple[str, ...] = ()
    slow: bool = False


RUN = command(*OUT, "r")
MADE = ("r/model.safetensors", "r/config.toml", "r/metrics.jsonl")
STREAMS = [
    Streams("stdout closed", f"{RUN} >&-", 0, "", None, MADE, slow=True),
    Streams("all streams closed", f"{RUN} <&- >&- 2>&-", 0, "", "", MADE, slow=True),
    Streams("stderr full", f"{RUN} 2>/dev/full", 0, "r\n", "", MADE, slow=True),
    Streams("the reader of stderr gone", f"{RUN} 2> >(true)", 0, "r\n", "", MADE, slow=True),
    Streams("both readers gone", f"{RUN} 2>&1 | true; exit ${{PIPESTATUS[0]}}", 141, "", "", MADE),
    Streams("stdout full", "difftool list >/dev/full", 1, "", "difftool: error: "),
    Streams("stdout full, help", "difftool --help >/dev/full", 1, "", "difftool: error: "),
    Streams("stdout full, JSON", "difftool list --json >/dev/full", 1, "", "difftool: error: "),
    Streams("stdout closed, JSON", "difftool list --json >&-", 0, "", ""),
    Streams("stderr full, wrong usage", "difftool traim 2>/dev/full", 2, "", ""),
    Streams("stderr closed, wrong usage", "difftool traim 2>&-", 2, "", ""),
    Streams("one line of JSON", "difftool list --json | head -1; exit ${PIPESTATUS[0]}", 141, "{\n", ""),
    Streams("no line of a table", "difftool list | true; exit ${PIPESTATUS[0]}", 141, "", ""),
    Streams("no line of help", "difftool --help | true; exit ${PIPESTATUS[0]}", 141, "", ""),
    Streams(
        "stderr full, a table on it",
        "difftool inspect-schedule linear 2>/dev/full",
        0,
        None,
        "",
        ("schedule-001.png",),
        slow=True,
    ),
    Streams(
        "the current folder deleted", "mkdir gone; cd gone; rmdir ../gone; difftool sample", 1, "", "difftool: error: "
    ),
]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.id, marks=[pytest.mark.slow] if row.slow else []) for row in STREAMS]
)
def test_streams(row: Streams, tmp_path: Path) -> None:
    outcome = shell(row.line, tmp_path)
    if row.code in (1, 2):
        TABLE.append((row.id, outcome.code, outcome.err.strip()))
    assert "Traceback" not in outcome.err
    assert "Exception ignored" not in outcome.err
    assert outcome.code in ((row.code, 0) if row.code == 141 else (row.code,)), outcome.err  # a pipe may hold it all
    if row.out is not None:
        assert outcome.out == row.out
    if row.err:
        assert outcome.err.startswith(row.err)
        assert len(outcome.err.splitlines()) == 1
    elif row.err is not None:
        assert outcome.err == ""
    missing = [name for name in row.made if not (tmp_path / name).is_file()]
    assert missing == []


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "a dumb terminal of 1 column": {"TERM": "dumb", "COLUMNS": "1"},
    "no columns": {"COLUMNS": "0"},
    "no home, nothing temporary": {"HOME": None, "TMPDIR": "/dev/null/none", "XDG_CACHE_HOME": None},
    "a home that is a device": {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"},
    "a C locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(name: str, tmp_path: Path) -> None:
    """Help and an error in a process of its own; nothing depends on a home or a pretty terminal."""
    env = SURROUNDINGS[name]
    outcome = shell("difftool train --help", tmp_path, env)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.strip()
    assert "\x1b" not in outcome.out
    wrong = shell(command("train", "--config", "'é\x1b.toml'"), tmp_path, env)
    refused(f"an error with {name}", wrong, 2, (r"\x1b.toml does not exist",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a dumb terminal of 1 column", "no home, nothing temporary", "a C locale"])
def test_training_in_surroundings(name: str, tmp_path: Path) -> None:
    outcome = shell(f"{RUN} && {PROGRAM} inspect-schedule cosine --out s.png", tmp_path, SURROUNDINGS[name])
    assert (outcome.code, outcome.out) == (0, "r\ns.png\n"), outcome.err
    assert "run folder r" in outcome.err
    assert not [c for c in outcome.err if not c.isprintable() and c != "\n"]


def test_a_plugin_that_raises_while_it_is_imported(tmp_path: Path) -> None:
    """The plugin lies in site-packages as of another distribution. tests/test_plugins.py has the other ways to fail."""
    site, work = tmp_path / "site", tmp_path / "work"
    (site / "rogue-1.0.dist-info").mkdir(parents=True)
    work.mkdir()
    (site / "rogue-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue\nVersion: 1.0\n")
    (site / "rogue-1.0.dist-info" / "entry_points.txt").write_text("[difftool]\nrogue = rogue_plugin\n")
    (site / "rogue_plugin.py").write_text("raise RuntimeError('no\\n\\x1b[31mway')")
    env = {"PYTHONPATH": str(site), "DIFFTOOL_PLUGINS": "rogue", "PYTHONDONTWRITEBYTECODE": "1"}
    outcome = spawn("inspect-schedule", "rogue", cwd=work, env=env)
    refused("a plugin that raises", outcome, 1, ("failed to import: RuntimeError: no", "rogue"))
    assert list(work.iterdir()) == []


class Rogue(NoiseSchedule, name="rogue"):
    """Raises while it is built."""

    def build(self, timesteps: int) -> Schedule:
        raise KeyError("\n\x1b[31m")


def test_a_component_that_raises(
    plugin_manager: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    plugin_manager.register(SimpleNamespace(__name__="theirs", difftool_schedules=hookimpl(lambda: [Rogue])))
    fault = Fault("a component that raises", ("inspect-schedule", "rogue"), 1, ("schedule rogue failed: KeyError",))
    check(fault, tmp_path, world, monkeypatch)


def powerless() -> None:
    """In a child process: root obeys modes too, as others do (prctl PR_CAPBSET_DROP of CAP_DAC_*, before exec)."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):
                raise OSError("the bounding set cannot be changed")


MODES: list[tuple[Fault, str, int]] = [
    (
        Fault("--out in a folder that is read-only", (*OUT, "d/x"), 1, ("d/x", "not writable"), (folder("d"),)),
        "d",
        0o555,
    ),
    (Fault("--out a folder that is read-only", (*OUT, "d"), 1, ("d", "not writable"), (folder("d"),)), "d", 0o555),
    (Fault("runs read-only", TRAIN, 1, ("runs", "not writable"), (folder("runs"),)), "runs", 0o555),
    (Fault("the current folder read-only", TRAIN, 1, ("not writable",)), ".", 0o555),
    (Fault("a picture in a read-only folder", (*TO, "d/x.png"), 1, ("d/x.png",), (folder("d"),)), "d", 0o555),
    (Fault("a config that cannot be read", CONFIG, 2, ("c.toml", "read"), (put("c.toml", ""),)), "c.toml", 0),
    (Fault("a model that cannot be read", LOAD, 2, ("m.safetensors", "read"), (model(),)), "m.safetensors", 0),
    (Fault("images that cannot be listed", FOLDER, 2, ("i",), (GOOD,)), "i", 0),
    (Fault("an image that cannot be read", FOLDER, 1, ("i/a.png", "Permission"), (GOOD,)), "i/a.png", 0),
    (Fault("a run that cannot be entered", RESUME, 2, ("r",), (copied(),)), "r", 0),
    (Fault("a run that is read-only", RESUME, 1, ("r",), (copied(),)), "r", 0o555),
]


@pytest.mark.parametrize(("fault", "name", "mode"), MODES, ids=[row[0].id for row in MODES])
def test_modes(fault: Fault, name: str, mode: int, tmp_path: Path, world: World) -> None:
    for step in fault.steps:
        step(tmp_path, world)
    before, usual = snapshot(tmp_path), stat.S_IMODE((tmp_path / name).stat().st_mode)
    os.chmod(tmp_path / name, mode)
    try:
        outcome = shell(command(*map(world.argument, fault.arguments)), tmp_path, limit=powerless)
    except subprocess.SubprocessError:
        pytest.skip("root cannot be made to obey modes here")
    finally:
        os.chmod(tmp_path / name, usual)
    refused(fault.id, outcome, fault.code, fault.pieces)
    assert snapshot(tmp_path) == before


def most(what: int, size: int) -> Callable[[], None]:
    """In a child process: no more than this of a resource."""
    return lambda: resource.setrlimit(what, (size, size))


@pytest.mark.parametrize(
    ("kilobytes", "piece"),
    [(16, "r/state/"), pytest.param(1, "r/", marks=pytest.mark.slow)],
)
def test_a_full_disk(kilobytes: int, piece: str, tmp_path: Path, world: World) -> None:
    """As when the disk is full: no file may grow beyond a size. Python ignores the signal, so that writing fails."""
    copied()(tmp_path, world)
    gone("r/metrics.jsonl")(tmp_path, world)
    states = tree(tmp_path / "r" / "state")
    outcome = shell(command(*RESUME), tmp_path, limit=most(resource.RLIMIT_FSIZE, kilobytes * 1024))
    refused(f"no file above {kilobytes} kB", outcome, 1, (piece,))
    assert tree(tmp_path / "r" / "state") == states
    assert [p for p in tmp_path.rglob("*") if p.name.startswith(TEMPORARY)] == []
    assert checkpoint.load(tmp_path / "r" / "model.safetensors")
    again = invoke("train", "--resume", tmp_path / "r", "--steps", 40)
    assert again.code == 0, again.err


GIGABYTES = 3 * 2**30
"""Addresses a process may use: far more than a tiny run needs, and less than the rows ask for."""
MEMORY = [
    Fault(
        "a network that does not fit",
        ("train", "--dataset.n", 64, "--backbone.width", 16384, "--backbone.depth", 8, "--out", "r"),
        1,
        ("out of memory", "--batch-size"),
    ),
    Fault(
        "a batch that does not fit",
        (*TRAIN, "--batch-size", 10**6, "--backbone.width", 4096, "--out", "r"),
        1,
        ("memory",),
    ),
    Fault(
        "samples that do not fit",
        ("sample", "POINTS", "-n", 10**9, "--steps", 1, "--batch-size", 10**7),
        1,
        ("memory",),
    ),
    Fault(
        "a model of images of 65,536 pixels square",
        ("sample", "m.safetensors", "-n", 1, "--steps", 1, "--out", "x.npy"),
        1,
        NO_DATA,
        (model("data.shape", [3, 65_536, 65_536], of="IMAGES"),),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", MEMORY, ids=[fault.id for fault in MEMORY])
def test_too_little_memory(fault: Fault, tmp_path: Path, world: World) -> None:
    for step in fault.steps:
        step(tmp_path, world)
    before = snapshot(tmp_path)
    line = command(*map(world.argument, fault.arguments))
    outcome = shell(line, tmp_path, limit=most(resource.RLIMIT_AS, GIGABYTES))
    refused(fault.id, outcome, fault.code, fault.pieces)
    if "batch" not in fault.id:  # training that began leaves its run
        assert snapshot(tmp_path) == before


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_table_of_faults() -> None:
    """Shown by `pytest -s` and `-rA`: the rows that this process ran, and what a user saw."""
    names = [name for name, _, _ in TABLE]
    assert len(names) == len(set(names))
    width = max(map(len, names), default=0)
    print(f"\n{'row':{width}}  code  line")
    for name, code, line in TABLE:
        print(f"{name!r:{width}}  {code:4}  {line[:160]}")
    print(f"{len(TABLE)} rows")
