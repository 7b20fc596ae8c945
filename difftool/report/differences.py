"""Several runs beside each other: their results, and the settings in which they differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from difftool.report.content import Evaluation, Table, number
from difftool.runs.summary import Value, differing, options_in, text_of

MOST = 60
"""The largest number of settings that are shown."""


def settings_table(configs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return the settings that are not the same in all runs, or None if all are."""
    options = {name: options_in(config) for name, config in configs.items()}
    names = differing([*options.values()])
    if not names:
        return None
    more = f" (the first {MOST} of {len(names)})" if len(names) > MOST else ""
    rows = [[name, *(_cell(own.get(name)) for own in options.values())] for name in names[:MOST]]
    return Table(caption=f"What differs{more}", headings=["setting", *options], rows=rows)


def _cell(value: Value | None) -> str:
    """Return a value as the command line spells it. Of paths of a machine only the last part is shown."""
    text = "–" if value is None else text_of(value)
    return f".../{os.path.basename(text.rstrip('/'))}" if os.path.isabs(text) else text


def results_table(results: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the results of all runs: a row for each number, and a column for each run."""
    keys = dict.fromkeys(key for values in results.values() for key in values)
    rows = [[key, *(values.get(key, "–") for values in results.values())] for key in keys]
    return Table(caption="Results", headings=["", *results], rows=rows)


def results_of(
    losses: Mapping[str, float | None], status: str, verdict: str, evaluations: Sequence[Evaluation]
) -> dict[str, str]:
    """Return the newest numbers of a run in words."""
    names = {"loss": "training loss, smoothed", "eps_loss": "loss of eps, smoothed", "held_out_loss": "held-out loss"}
    found = {"progress": status, "verdict": verdict}
    found |= {names[key]: number(value) for key, value in losses.items() if value is not None}
    for evaluation in reversed(evaluations):
        for score in evaluation.scores:
            found[f"{score.metric} ({score.better} is better)"] = score.text
    return found
