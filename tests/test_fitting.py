"""The search for a batch size, on machines that are made up; and once for real, through the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import POINTS, Run

from difftool.errors import DifftoolError
from difftool.training.batch_size import search


def machine(*, overhead: float, item: float, room: int = 10**9) -> Callable[[int], float]:
    """Items a second where a step costs some overhead and each item its time; out of memory beyond `room` items."""

    def speed(size: int) -> float:
        if size > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return size / (overhead + size * item)

    return speed


def never() -> bool:
    return False


def test_the_smallest_size_that_is_nearly_as_fast() -> None:
    found = search(machine(overhead=1.0, item=0.1), 4096, never)
    assert found.batch_size == 128
    assert found.speeds[64] < 0.9 * max(found.speeds.values()) < found.speeds[128]
    assert 4096 not in found.speeds  # it was not worth looking
    assert not found.reason
    assert "batch size 128 found; samples/s by batch size: 1: 1, 2: 2" in str(found)


def test_where_items_cost_all_the_time_one_is_enough() -> None:
    found = search(machine(overhead=0.0, item=1.0), 4096, never)
    assert found.batch_size == 1
    assert [*found.speeds] == [1, 2, 4]


def test_memory_ends_the_search() -> None:
    found = search(machine(overhead=100.0, item=0.01, room=40), 4096, never)
    assert found.batch_size == 32
    assert str(found).endswith("; 64 needs more memory than there is")


def test_little_memory_left_ends_it_before_it_runs_out() -> None:
    tried: list[int] = []

    def speed(size: int) -> float:
        tried.append(size)
        return float(size)

    found = search(speed, 4096, lambda: tried[-1] >= 16)
    assert (found.batch_size, tried[-1]) == (16, 16)
    assert found.reason == "16 leaves too little memory for more"


def test_no_more_items_than_there_are() -> None:
    assert search(machine(overhead=100.0, item=0.01), 20, never).batch_size == 16


def test_a_single_item_that_does_not_fit() -> None:
    with pytest.raises(DifftoolError, match="out of memory with a single item at once"):
        search(machine(overhead=1.0, item=1.0, room=0), 4096, never)


def test_what_goes_wrong_otherwise_is_not_swallowed() -> None:
    def broken(size: int) -> float:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        search(broken, 8, never)


def test_a_run_records_what_was_found(run: Run, tmp_path: Path) -> None:
    outcome = run("train", *POINTS, "--batch-size", "auto", "--steps", 2, "--out", "r", "--preview-every", 0)
    assert outcome.code == 0, outcome.err
    size = tomllib.loads((tmp_path / "r" / "config.toml").read_text())["training"]["batch_size"]
    assert f"batch size {size} found; samples/s by batch size: 1: " in outcome.err
    assert size >= 1
    again = run("train", "--resume", "r", "--steps", 3)
    assert again.code == 0, again.err
    assert "found" not in again.err


def test_each_part_of_a_batch_has_an_item(run: Run, tmp_path: Path) -> None:
    outcome = run(
        "train", "--dataset.n", 2, "--backbone.width", 8, "--batch-size", "auto", "--accumulate", 3, "--dry-run"
    )
    assert outcome.code == 0, outcome.err
    assert "batch size 3 found; samples/s by batch size: 3: " in outcome.err


def test_auto_is_said_in_a_file_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[training]\nbatch_size = "auto"\n')
    outcome = run("train", "--config", "c.toml", "--dataset.n", 64, "--backbone.width", 8, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "found" in outcome.err
    refused = run("train", "--batch-size", "automatic")
    assert "--batch-size: must be a whole number or auto, not 'automatic'" in refused.error
