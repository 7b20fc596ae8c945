"""The view of `train --dry-run`: what a run needs, and its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difftool.cli.console import add_row, duration, new_table, note, result, result_json, show
from difftool.cli.run_table import size_text
from difftool.errors import counted
from difftool.runs.config import dump_toml

if TYPE_CHECKING:
    from difftool.distributed import ProcessGroup
    from difftool.runs.folder import RunFolder
    from difftool.training.estimate import Estimate
    from difftool.training.experiment import Experiment

MEANINGS = {
    "weights": "",
    "averages": "averages of the weights",
    "optimizer": "state of the optimizer",
    "data": "data in memory",
    "inputs": "inputs of the next steps",
    "activations": "kept for the backward pass",
    "gradients": "so far; the others come when activations are gone",
    "copies": "of the state, while it is written",
    "process": "libraries, kernels and pictures",
}


def report_needs(
    experiment: Experiment, group: ProcessGroup, resumed: RunFolder | None, out: Path | None, *, as_json: bool
) -> None:
    """Print what a run needs that is resumed, or begins in the folder `out`, and its configuration. Write nothing."""
    from difftool.runs.folder import ROOT, RunFolder
    from difftool.training.estimate import estimate

    needs = estimate(experiment, group, resumed or RunFolder(out or ROOT))
    warnings = [*lacks(needs, group.world.local_size)]
    if as_json:
        result_json(facts(experiment, needs, warnings))
        return
    steps = f"{counted(experiment.steps, 'step')}, {experiment.timetable.steps_per_epoch} an epoch"
    note(steps if needs.flops is None else f"{steps}; {flops_text(needs.flops)} a step, forward and backward")
    table = new_table("memory at the peak", "", "")
    for name, size in sorted(needs.memory.items(), key=lambda row: -row[1]):
        add_row(table, name, size_text(size), MEANINGS[name])
    add_row(table, "in all", size_text(needs.peak), "" if not needs.unknown else "without activations")
    show(table)
    if needs.unknown:
        note(f"activations and operations are unknown, since the step does not run without values: {needs.unknown}")
    if (times := needs.times) is not None and needs.seconds is not None:
        first = f", {times.first:.3g} s the first one" if times.first > max(1.0, 5 * times.step) else ""
        note(
            f"{seconds_text(times.step)} a step ({times.timed} timed{first}): "
            f"{duration(needs.seconds)} for the run, without pictures and saving"
        )
    note(f"{size_text(needs.disk)} on the disk at most, without pictures and logs")
    for text in warnings:
        note(f"warning: {text}")
    result(dump_toml(experiment.recipe.document()).rstrip())


def lacks(needs: Estimate, processes: int) -> Iterator[str]:
    """Yield a line for what the machine does not have."""
    if needs.obtainable is not None and needs.peak * processes > needs.obtainable:
        many = f"{processes} processes" if processes > 1 else "the run"
        yield (
            f"{many} would take {size_text(needs.peak * processes)} of memory, and {size_text(needs.obtainable)} are "
            "free, so no step was timed; a smaller --batch-size, --accumulate or --checkpoint-activations save memory"
        )
    if needs.disk > needs.free_disk:
        yield f"the run folder would take {size_text(needs.disk)}, and its disk has {size_text(needs.free_disk)} left"


def facts(experiment: Experiment, needs: Estimate, warnings: list[str]) -> dict[str, Any]:
    """Return what `--json` prints. Sizes are in bytes and times in seconds."""
    times = needs.times
    return {
        "parameters": experiment.parameters,
        "trained": experiment.trained,
        "flops": needs.flops,
        "memory": {**needs.memory, "peak": needs.peak, "obtainable": needs.obtainable},
        "seconds_per_step": None if times is None else times.step,
        "first_step_seconds": None if times is None else times.first,
        "held_out_seconds": None if times is None else times.held_out,
        "seconds": needs.seconds,
        "disk": {"peak": needs.disk, "free": needs.free_disk},
        "unknown": needs.unknown,
        "warnings": warnings,
        "state_bytes": experiment.state.bytes,
        "steps": experiment.steps,
        "steps_per_epoch": experiment.timetable.steps_per_epoch,
        "classes": list(experiment.data.class_names),
        "condition": {name: list(shape) for name, shape in experiment.data.condition.shapes.items()},
        "latents": None if experiment.model.latents is None else list(experiment.model.latents.facts.shape),
        "device": str(experiment.device),
        **experiment.recipe.document(),
    }


def flops_text(flops: float) -> str:
    """Return a number of operations: `26.6 GFLOP`."""
    power = min(5, max(0, int(math.log10(max(flops, 1.0)) // 3)))
    return f"{flops / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOP"


def seconds_text(seconds: float) -> str:
    """Return a short time: `1.2 ms`, `0.35 s`."""
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else f"{seconds:.3g} s"
