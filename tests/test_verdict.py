"""Verdicts on training: synthetic curves, and real runs of which one memorises its items."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import difftool
from difftool.rng import generator
from difftool.runs.verdict import Verdict, verdict

Curve = Callable[[float], float]
"""The loss at a share of the run."""


def rows_of(
    held_out: Curve, train: Curve | None = None, *, n: int = 40, scatter: float = 0.005
) -> list[dict[str, Any]]:
    """Return rows whose cleanest quarter takes these courses, beside three that have long been flat."""
    noise = (scatter * torch.randn(2, n, 4, generator=generator("curves"))).tolist()
    rows = []
    for i in range(n):
        share = i / (n - 1)
        both = []
        for values, curve in zip((noise[0][i], noise[1][i]), (held_out, train or held_out), strict=True):
            both.append([curve(share) * (1 + values[0]), *(1 + value for value in values[1:])])
        loss = sum(both[0]) / 4
        quarters = {"held_out_loss": loss, "held_out_quartiles": both[0], "loss_quartiles": both[1]}
        rows.append({"step": 100 * (i + 1), "loss": sum(both[1]) / 4, **quarters})
    return rows


def converged(share: float) -> float:
    return 1.0 + math.exp(-40 * share)


def falling(share: float) -> float:
    return 1.0 - 0.3 * share


def rising(share: float) -> float:
    return converged(share) + max(0.0, share - 0.5)


def judged(rows: list[dict[str, Any]]) -> tuple[str, str]:
    found = verdict(rows)
    return found.state, found.words


def test_a_loss_that_has_converged_is_flat() -> None:
    state, words = judged(rows_of(converged))
    assert (state, words) == ("flat", "held-out loss: flat at all noise levels: more steps change little")


def test_a_loss_that_falls_is_said_to_fall_and_by_how_much() -> None:
    found = verdict(rows_of(falling))
    assert found.state == "falling"
    assert "; still falling at lowest noise (1" in found.words
    assert found.quarters[0].change == pytest.approx(-0.1 / 0.725, rel=0.1)
    assert [quarter.state for quarter in found.quarters] == ["falling", "flat", "flat", "flat"]


def test_a_loss_that_falls_ever_more_slowly_still_falls() -> None:
    """These were measured on digits. A straight line through the last of them leaves too much beside it."""
    losses = [0.949, 0.379, 0.223, 0.188, 0.1727, 0.1585, 0.1512, 0.1448, 0.1415, 0.1378, 0.1354, 0.1344, 0.1344]
    rows = [{"step": 47 * k, "loss": x, "held_out_quartiles": [x] * 4} for k, x in enumerate(losses, start=1)]
    state, words = judged(rows)
    assert state == "falling"
    assert words == "held-out loss: still falling at all noise levels (5 % over the last third)"


def test_a_held_out_loss_that_rises_beside_a_training_loss_that_does_not_is_memorising() -> None:
    found = verdict(rows_of(rising, converged))
    assert found.state == "memorising"
    assert found.words.endswith(" above its best): it memorises")
    assert found.quarters[0].memorises
    assert 1_000 < found.quarters[0].best_step < 2_200
    assert found.quarters[0].above_best == pytest.approx(0.45, abs=0.05)


def test_a_rise_that_has_ended_still_counts() -> None:
    assert judged(rows_of(lambda share: 1.0 + min(0.3, share), lambda _: 1.0))[0] == "memorising"


def test_a_rise_of_both_losses_is_no_memorising() -> None:
    state, words = judged(rows_of(rising, rising))
    assert state == "unstable"
    assert "as on training items: a lower --lr may help" in words


def test_falling_and_rising_levels_are_told_apart() -> None:
    rows = rows_of(rising, converged)
    for row in rows:
        row["held_out_quartiles"][2:] = [row["held_out_quartiles"][2] * falling(row["step"] / 4000)] * 2
    words = verdict(rows).words
    assert "still falling at high noise (" in words
    assert "; rising at lowest noise since step " in words


@pytest.mark.parametrize("scatter", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("n", [8, 20, 200])
def test_scatter_alone_neither_falls_nor_rises(n: int, scatter: float) -> None:
    assert judged(rows_of(lambda _: 1.0, n=n, scatter=scatter))[0] in ("flat", "unclear")


def test_few_measurements_are_not_judged() -> None:
    found = verdict(rows_of(rising, converged, n=7))
    assert found == Verdict("unknown", "held-out loss: too few measurements to judge (7; it takes 8)", 7)
    assert verdict([]).state == "unknown"


def test_without_held_out_items_the_loss_of_training_is_judged() -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("held_out")} for row in rows_of(converged, falling)]
    state, words = judged(rows)
    assert state == "falling"
    assert words.startswith("loss: flat at lower, higher and highest noise; still falling at lowest noise")
    assert words.endswith("nothing is held out, so memorising cannot be seen: train with --held-out N")


def test_gaps_and_the_order_of_rows_do_not_matter() -> None:
    rows = rows_of(rising, converged)
    sparse = [row for i, row in enumerate(rows) if not 5 < i < 15]
    for row in rows[::3]:
        del row["held_out_loss"], row["held_out_quartiles"]
    for row in rows[1::3]:
        row["loss_quartiles"] = [None] * 4
    assert verdict(rows).state == verdict(sparse).state == verdict([*reversed(sparse)]).state == "memorising"
    assert verdict([*reversed(sparse)]) == verdict(sparse)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e299, 1e-300])
def test_strange_numbers_are_judged_too(value: float) -> None:
    rows = [{"step": i, "loss": 1.0, "loss_quartiles": [value, None, value, -value]} for i in range(50)]
    assert verdict(rows).quarters[0].state == "flat"
    assert len(verdict(rows).quarters) == 3
    json.dumps(verdict(rows).document(), allow_nan=False)


def digits(n: int) -> torch.Tensor:
    images = pytest.importorskip("sklearn.datasets").load_digits().images
    chosen = torch.randperm(len(images), generator=generator("digits"))[:n]
    return torch.from_numpy(images)[chosen].float().flatten(1) / 8 - 1


@pytest.mark.parametrize(("items", "held_out", "memorises"), [(40, 20, True), (1797, 300, False)])
def test_a_run_that_overfits_twenty_digits_memorises_and_one_on_all_digits_does_not(
    items: int, held_out: int, memorises: bool, tmp_path: Path
) -> None:
    model = difftool.train(
        dataset=digits(items),
        backbone=difftool.component("backbone", "mlp", width=128),
        held_out=held_out,
        steps=400,
        lr=3e-3,
        batch_size=64,
        out=tmp_path / "run",
        progress=False,
        device="cpu",
    )
    assert model.run is not None
    found = model.run.verdict()
    assert (found.state == "memorising") == memorises, found.words
