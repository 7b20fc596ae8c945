"""The run folder: stopping and going on bit for bit, what is damaged, what is locked, how runs are found."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import IMAGES, POINTS, Outcome, Run, invoke, spawn, tree
from PIL import Image

from difftool.errors import BadFile, DifftoolError
from difftool.files import atomic, numbered, write_text
from difftool.runs import checkpoint
from difftool.runs.folder import RunFolder, all_runs, find_model

LONG = (*POINTS, "--checkpoint-every", 7, "--lr-schedule", "constant", "--lr", 2e-3, "--warmup", 0, "--threads", 1)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def state_of(folder: Path) -> dict[str, Any]:
    """The newest training state."""
    return checkpoint.load(RunFolder(folder).saved_states()[0])[0]


@pytest.fixture(scope="module")
def straight(shared: Callable[..., Path]) -> Path:
    """A run of 20 steps without a break: read it, or copy it."""
    return shared("straight", *LONG, "--steps", 20)


@pytest.fixture
def half(tmp_path: Path, straight: Path) -> Path:
    """The same run as it lay there after 14 of 20 steps: its states after 7 and 14."""
    folder = tmp_path / "half"
    outcome = invoke("train", *LONG, "--steps", 14, "--out", folder)
    assert outcome.code == 0, outcome.err
    return folder


def test_a_run_repeats_itself(straight: Path, tmp_path: Path) -> None:
    assert invoke("train", *LONG, "--steps", 20, "--out", tmp_path / "again").code == 0
    assert weights(tmp_path / "again") == weights(straight)
    assert invoke("train", *LONG, "--steps", 20, "--seed", 1, "--out", tmp_path / "other").code == 0
    assert weights(tmp_path / "other") != weights(straight)


def test_more_steps_on_resume_equal_a_longer_run(half: Path, straight: Path) -> None:
    assert weights(half) != weights(straight)
    outcome = invoke("train", "--resume", half, "--steps", 20)
    assert outcome.code == 0, outcome.err
    assert outcome.lines == [str(half)]
    assert "after step 14" in outcome.err
    assert weights(half) == weights(straight)
    a, b = state_of(half), state_of(straight)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows, expected = RunFolder(half).read_metrics(), RunFolder(straight).read_metrics()
    assert [(r["step"], r["loss"], r["lr"]) for r in rows] == [(r["step"], r["loss"], r["lr"]) for r in expected]


def test_a_resumed_run_of_images_equals_a_straight_one(tmp_path: Path) -> None:
    """Images are trained in another memory layout than files hold; that must not reach the optimizer."""
    constant = ("--lr-schedule", "constant", "--backbone.dropout", "0.1", "--precision", "bf16")
    assert invoke("train", *IMAGES, *constant, "--steps", 8, "--out", tmp_path / "a").code == 0
    assert invoke("train", *IMAGES, *constant, "--steps", 4, "--out", tmp_path / "b").code == 0
    assert invoke("train", "--resume", tmp_path / "b", "--steps", 8).code == 0
    assert weights(tmp_path / "b") == weights(tmp_path / "a")


def test_fewer_steps_than_were_made_are_refused(half: Path) -> None:
    before = tree(half)
    outcome = invoke("train", "--resume", half, "--steps", 7)
    assert outcome.code == 2
    assert "--steps: the run is at step 14 already" in outcome.error
    assert tree(half) == before


def test_a_run_in_training_is_not_overwritten(half: Path) -> None:
    before = tree(half)
    with RunFolder(half).lock():
        outcome = invoke("train", *LONG, "--steps", 1, "--out", half, "--overwrite")
    assert outcome.code == 1
    assert "in use by process" in outcome.error
    assert {k: v for k, v in tree(half).items() if k != "lock"} == {k: v for k, v in before.items() if k != "lock"}


def test_resuming_a_finished_run_changes_no_weight(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    assert invoke("train", "--resume", folder).code == 0
    assert weights(folder) == weights(straight)


def test_only_the_newest_states_are_kept(straight: Path) -> None:
    assert [p.name for p in RunFolder(straight).saved_states()] == [
        "step-000000020.safetensors",
        "step-000000014.safetensors",
    ]


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["--lr", "0.5"], ["--lr is 0.002 in the run, not 0.5"]),
        (
            ["--seed", "3", "--batch-size", "8"],
            ["--seed is 0 in the run, not 3", "--batch-size is 64 in the run, not 8"],
        ),
        (["--backbone.width", "8"], ["--backbone.width is 16 in the run, not 8"]),
        (["--schedule", "cosine"], ["--schedule is linear in the run, not cosine"]),
        (["--dataset.n", "400"], ["--dataset.n is 500 in the run, not 400"]),
        (["--prediction", "v"], ["--prediction is eps in the run, not v"]),
    ],
)
def test_options_that_contradict_the_run_are_listed(
    straight: Path, tmp_path: Path, arguments: list[str], pieces: list[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    before = tree(folder)
    outcome = invoke("train", "--resume", folder, *arguments)
    assert outcome.code == 1
    for piece in [*pieces, f"--resume {folder}", "leave these out"]:
        assert piece in outcome.error
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["--out", "x"], "--out: a resumed run stays in its folder"),
        (["--config", "c.toml"], "--config: a resumed run has its own"),
    ],
)
def test_resume_takes_no_other_folder_or_config(straight: Path, arguments: list[str], piece: str) -> None:
    outcome = invoke("train", "--resume", straight, *arguments)
    assert outcome.code == 2
    assert piece in outcome.error


def test_repeating_the_runs_own_options_is_no_contradiction(half: Path, straight: Path) -> None:
    outcome = invoke("train", "--resume", half, "--steps", 20, "--backbone.width", 16, "--lr", 2e-3, "--keep", 1)
    assert outcome.code == 0, outcome.err
    a, b = state_of(half), state_of(straight)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert len(RunFolder(half).saved_states()) == 1


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[-100:]
    elif how == "flipped":
        data[-20] ^= 1
    elif how == "empty":
        data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("missing", ["state", "config.toml"])
def test_resuming_what_is_no_whole_run(half: Path, missing: str) -> None:
    if missing == "state":
        shutil.rmtree(half / "state")
    else:
        (half / missing).unlink()
    outcome = invoke("train", "--resume", half, "--steps", 20)
    if missing == "state":  # finished, by its metrics, and nothing to go on from
        assert outcome.code in (0, 1)
    else:
        assert outcome.code == 1
        assert "is not a run folder: it has no config.toml" in outcome.error


def test_resuming_what_does_not_exist(tmp_path: Path) -> None:
    outcome = invoke("train", "--resume", tmp_path / "nope")
    assert outcome.code == 1
    assert f"run {tmp_path / 'nope'} does not exist" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_a_run_killed_before_its_first_state_starts_again(half: Path, straight: Path) -> None:
    shutil.rmtree(half / "state")
    (half / "model.safetensors").unlink()
    (half / "metrics.jsonl").unlink()
    assert invoke("train", "--resume", half, "--steps", 20).code == 0
    assert weights(half) == weights(straight)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:  # noqa: PT012
        assert temporary.name == "x.txt"
        temporary.write_text("new")
        assert path.read_text() == "old"
        raise RuntimeError
    assert tree(tmp_path) == {"deep/x.txt": b"old"}
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert tree(tmp_path) == {"deep/x.txt": b"new"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with pytest.raises(DifftoolError, match="exists"), atomic(path, overwrite=False) as temporary:  # noqa: PT012
        temporary.write_text("ours")
        path.write_text("theirs")
    assert tree(tmp_path) == {"x.txt": b"theirs"}


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """As on a full disk: the process may write no more than 2 kB to a file."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(4)}, {"kind": "state"})
    code = (
        "import resource, sys, signal, torch; from pathlib import Path; from difftool.runs import checkpoint\n"
        "from difftool.errors import DifftoolError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try: checkpoint.save(Path(sys.argv[1]), {'a': torch.zeros(10_000)}, {})\n"
        "except DifftoolError as error: print(error)\n"
    )
    before = tree(tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert f"{path} could not be written: " in done.stdout, done.stderr
    assert tree(tmp_path) == before


def test_files_follow_the_umask(points_run: Path) -> None:
    for path in points_run.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask(), path


def test_files_are_0644_under_umask_022(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(4)}, {})
        write_text(tmp_path / "b.toml", "x")
        os.umask(0o077)
        write_text(tmp_path / "c.toml", "x")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"a.safetensors": 0o644, "b.toml": 0o644, "c.toml": 0o600}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_names_are_numbered_one_above_the_highest(tmp_path: Path) -> None:
    assert numbered(tmp_path, "ddim-50", ".png") == tmp_path / "ddim-50-001.png"
    for name in ("ddim-50-001.png", "ddim-50-007.png", "ddim-50-0x9.png", "ddim-50-900.gif", "xddim-50-800.png"):
        (tmp_path / name).touch()
    assert numbered(tmp_path, "ddim-50", ".png") == tmp_path / "ddim-50-008.png"
    (tmp_path / "ddim-50-999.png").touch()
    assert numbered(tmp_path, "ddim-50", ".png") == tmp_path / "ddim-50-1000.png"
    (tmp_path / "ddim-50-1000.png").touch()
    assert numbered(tmp_path, "ddim-50", ".png") == tmp_path / "ddim-50-1001.png"
    (tmp_path / "a[b]-003.png").touch()
    assert numbered(tmp_path, "a[b]", ".png") == tmp_path / "a[b]-004.png"
    assert numbered(tmp_path / "none", "x", ".png") == tmp_path / "none" / "x-001.png"


def test_the_newest_run_is_the_one_that_started_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DifftoolError, match="there is no trained run under"):
        find_model(None)
    starts = {"zzz": "2020-01-01T00:00:00.000+00:00", "aaa": "2024-05-01T00:00:00.000+00:00", "mmm": ""}
    for name, started in starts.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(f'[run]\nstarted = "{started}"\n' if started else "")
        (folder / "model.safetensors").touch()
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.toml").write_text("not = [toml")
    os.utime(tmp_path / "runs" / "zzz" / "config.toml")  # touched last
    assert [run.path.name for run in all_runs()] == ["aaa", "zzz", "mmm", "broken"]
    assert find_model(None)[0] == Path("runs/aaa/model.safetensors")
    (tmp_path / "runs" / "aaa" / "model.safetensors").unlink()
    assert find_model(None)[0] == Path("runs/zzz/model.safetensors")


def test_numbered_run_folders_are_never_reused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "swiss-roll-mlp-007").mkdir(parents=True)
    (tmp_path / "runs" / "swiss-roll-mlp-9").mkdir()
    assert run("train", *POINTS, "--steps", 0).lines == ["runs/swiss-roll-mlp-008"]


# --- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3).t(),
        "b": torch.tensor(3, dtype=torch.int64),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    }
    checkpoint.save(path, tensors, {"kind": "model", "text": "é😀\x7f", "n": 1})
    found, document = checkpoint.load(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert document == {"format": 1, "kind": "model", "text": "é😀\x7f", "n": 1}
    first = path.read_bytes()
    checkpoint.save(path, dict(reversed(tensors.items())), {"n": 1, "text": "é😀\x7f", "kind": "model"})
    assert path.read_bytes() == first


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.arange(5.0), "b": torch.ones(3)}, {"kind": "model", "name": "abc"})
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for position in range(8 + size, len(whole)):  # every byte of the tensors
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BadFile, match="is damaged"):
            checkpoint.load(path)
    for position in range(0, 8 + size, 3):  # the header: damaged, foreign, or of no consequence
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            tensors, document = checkpoint.load(path)
        except BadFile:
            continue
        assert torch.equal(tensors["a"], torch.arange(5.0))
        assert (torch.equal(tensors["b"], torch.ones(3)), document["name"]) == (True, "abc")
    for end in (0, 1, 7, 8, 9, 8 + size - 1, 8 + size, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(BadFile, match="not a safetensors file written by difftool"):
            checkpoint.load(path)


def test_the_digest_covers_names_types_shapes_and_bytes() -> None:
    a = torch.tensor([1.0, 2.0])
    digests = {
        checkpoint.digest({"a": a}, ""),
        checkpoint.digest({"b": a}, ""),
        checkpoint.digest({"a": a}, "x"),
        checkpoint.digest({"a": a.view(1, 2)}, ""),
        checkpoint.digest({"a": a.view(torch.int32)}, ""),
        checkpoint.digest({"a": -a}, ""),
        checkpoint.digest({}, ""),
    }
    assert len(digests) == 7
    assert checkpoint.digest({"a": a, "b": a}, "") == checkpoint.digest({"b": a, "a": a}, "")


def test_differences_are_the_first_and_their_number() -> None:
    wanted = {f"w{i}": torch.zeros(2) for i in range(5)}
    assert checkpoint.differences(wanted, wanted) == ""
    found = {"w0": torch.zeros(3), "extra": torch.zeros(1), "w1": torch.zeros(2)}
    text = checkpoint.differences(wanted, found)
    assert text == "w2 is missing; w3 is missing; w4 is missing and 2 more"
    assert checkpoint.differences({"w0": torch.zeros(2)}, {"w0": torch.zeros(3)}) == "w0 is (3,), not (2,)"


def test_metrics_pass_over_half_lines_and_old_rows(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    for step, loss in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5)):
        run.append_metrics({"step": step, "loss": loss})
    with open(run.metrics, "a") as file:
        file.write("[1]\n3\n{}\n" + '{"step": 4, "lo')
    assert [(r["step"], r["loss"]) for r in run.read_metrics()] == [(1, 1.0), (2, 2.5), (3, 3.0)]
    assert [r["step"] for r in run.read_metrics(up_to=2)] == [1, 2]
    run.rewrite_metrics(run.read_metrics(up_to=2))
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_the_module_is_the_same_program(tmp_path: Path) -> None:
    outcome = spawn("--version", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("difftool ")


def test_an_edited_config_is_not_resumed(run: Run, points_run: Path, tmp_path: Path) -> None:
    """The weights would be given another meaning in silence."""
    shutil.copytree(points_run, tmp_path / "mine")
    config = tmp_path / "mine" / "config.toml"
    text = config.read_text()
    config.write_text(text.replace('name = "eps"', 'name = "v"'))
    before = tree(tmp_path / "mine")
    refused = run("train", "--resume", "mine", "--steps", 40)
    assert refused.code == 1
    assert "config.toml describes another run than step-000000030.safetensors was trained in: " in refused.error
    assert "--prediction is eps in the run, not v; restore that file" in refused.error
    assert tree(tmp_path / "mine") == before
    config.write_text(text)
    assert run("train", "--resume", "mine", "--steps", 31).code == 0


# --- what a resumed run remembers ----------------------------------------------------------------------------------


def paint(folder: Path, count: int = 12) -> None:
    """Images of one colour each, half of them in each of two classes."""
    for i in range(count):
        path = folder / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 100, 200 - 10 * i)).save(path)


FOLDER = (*IMAGES, "--dataset", "image-folder", "--steps", 3)
"""`train *FOLDER --dataset.path DIR`; the generated images' option is left out."""
FOLDER = tuple(a for i, a in enumerate(FOLDER) if "--dataset.n" not in (a, FOLDER[i - 1]))


@pytest.mark.parametrize("memory", [2, 0])
def test_changed_images_are_noticed(run: Run, tmp_path: Path, memory: int) -> None:
    paint(tmp_path / "data")
    trained = run("train", *FOLDER, "--dataset.path", "data", "--dataset.memory", memory, "--out", "r")
    assert trained.code == 0, trained.err
    before = tree(tmp_path / "r")
    (tmp_path / "data" / "even" / "00.png").unlink()
    refused = run("train", "--resume", "r", "--steps", 5)
    assert refused.code == 1
    for piece in ("its data have changed", "12 items, 3x8x8", "11 items, 3x8x8", "--new-data"):
        assert piece in refused.error
    assert {**tree(tmp_path / "r"), "lock": b""} == {**before, "lock": b""}
    assert run("train", "--resume", "r", "--steps", 5, "--new-data").code == 0
    assert run("train", "--resume", "r", "--steps", 6).code == 0  # these are its data now


def test_a_repainted_image_is_noticed(run: Run, tmp_path: Path) -> None:
    paint(tmp_path / "data")
    assert run("train", *FOLDER, "--dataset.path", "data", "--out", "r").code == 0
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "data" / "odd" / "03.png")
    assert "its data have changed" in run("train", "--resume", "r", "--steps", 5).error


@pytest.mark.parametrize("memory", [2, 0])
def test_images_may_move(run: Run, tmp_path: Path, memory: int) -> None:
    """A run goes on where its folder was copied to, and ends as it would have ended."""
    paint(tmp_path / "data")
    here = ("--dataset.path", "data", "--dataset.memory", memory, "--lr-schedule", "constant")
    assert run("train", *FOLDER, *here, "--out", "r").code == 0
    assert run("train", *FOLDER, *here, "--steps", 5, "--out", "straight").code == 0
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "data")
    moved = run("train", "--resume", "r", "--steps", 5, "--dataset.path", "elsewhere")
    assert moved.code == 0, moved.err
    a, b = (checkpoint.load(tmp_path / name / "model.safetensors")[0] for name in ("r", "straight"))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert "elsewhere" in (tmp_path / "r" / "config.toml").read_text()
    assert run("train", "--resume", "r", "--steps", 6).code == 0


def test_new_data_are_for_resumed_runs(run: Run) -> None:
    assert "--new-data: only a resumed run can have other data" in run("train", *POINTS, "--new-data").error


def test_another_number_of_threads_is_told(run: Run, points_run: Path, tmp_path: Path) -> None:
    shutil.copytree(points_run, tmp_path / "r")
    outcome = run("train", "--resume", "r", "--steps", 31, "--threads", 2)
    assert outcome.code == 0
    (warning,) = (line for line in outcome.err.splitlines() if "warning" in line)
    assert "the run was trained with threads 1, now 2: its last digits may differ" in warning
    assert "warning" not in run("train", "--resume", "r", "--steps", 32, "--threads", 2).err


def test_a_run_whose_states_are_gone_is_not_begun_anew(run: Run, points_run: Path, tmp_path: Path) -> None:
    shutil.copytree(points_run, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "state")
    model = weights(tmp_path / "r")
    assert "the training states of r are gone" in run("train", "--resume", "r", "--steps", 40).error
    assert weights(tmp_path / "r") == model


def test_a_disk_without_room_for_a_state_is_refused_before_training(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    outcome = run("train", *POINTS, "--steps", 3, "--out", "r")
    assert outcome.code == 1
    assert "r: its disk has 0.0 MiB left, and a training state takes" in outcome.error
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


# --- info and runs -------------------------------------------------------------------------------------------------


def facts(outcome: Outcome) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def test_info_tells_damage(run: Run, points_run: Path, tmp_path: Path) -> None:
    shutil.copytree(points_run, tmp_path / "r")
    assert run("train", "--resume", "r", "--steps", 31).code == 0
    damage(tmp_path / "r" / "state" / "step-000000031.safetensors", "flipped")
    damage(tmp_path / "r" / "model.safetensors", "truncated")
    found = facts(run("info", "r", "--json"))
    assert [(s["file"][:14], s["valid"]) for s in found["states"]] == [
        ("step-000000031", False),
        ("step-000000030", True),
    ]
    assert "its content does not match its digest" in found["states"][0]["problem"]
    assert found["model"]["valid"] is False
    text = run("info", "r").out
    assert "valid no" in text
    assert "valid yes" in text


def test_info_and_runs_say_how_far_runs_are(run: Run, points_run: Path, tmp_path: Path) -> None:
    assert facts(run("runs", "--json")) == {"runs": []}
    assert "there are no runs in" in run("runs").err
    for name, started in (("old", "2020"), ("new", "2030")):
        shutil.copytree(points_run, tmp_path / "runs" / name)
        config = tmp_path / "runs" / name / "config.toml"
        lines = config.read_text().splitlines()
        config.write_text("\n".join(f'started = "{started}-01-01"' if "started" in line else line for line in lines))
    config.write_text(config.read_text().replace("steps = 30", "steps = 40"))
    newest, oldest = facts(run("runs", "--json"))["runs"]
    assert (newest["run"], newest["status"], newest["step"], newest["steps"]) == ("runs/new", "stopped", 30, 40)
    assert (newest["components"]["dataset"], newest["components"]["loss"]) == ("swiss-roll", "mse")
    assert (oldest["run"], oldest["status"], oldest["step"], oldest["steps"]) == ("runs/old", "finished", 30, 30)
    assert facts(run("info", "--json"))["go_on"] == "difftool train --resume runs/new"
    assert "go_on" not in facts(run("info", "runs/old", "--json"))
    with RunFolder(tmp_path / "runs" / "old").lock():
        assert facts(run("info", "runs/old", "--json"))["status"] == "training"
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.toml").write_text("[[")
    table = run("runs", tmp_path / "runs").lines
    assert [line.split()[0].rpartition("/")[2] for line in table[1:]] == ["new", "old", "broken"]
    assert run("runs", "nowhere").code == 1
