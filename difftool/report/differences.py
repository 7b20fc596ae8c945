"""Several runs beside each other: their results, and the settings in which they differ."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from difftool.errors import printable, shortened
from difftool.report.content import Evaluation, Table, number

LONGEST = 120
"""Characters of a setting that are shown."""
IGNORED = ("run", "plugins", "format")
"""Tables of a config file that only record."""
MOST = 60
"""The largest number of settings that are shown."""


def settings_table(configs: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return the settings that are not the same in all runs, or None if all are.

    The options of a component are compared among the runs that have it.
    """
    flat = {name: _flat(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for settings in flat.values() for key in settings)
    rows = []
    for key in keys:
        cells = [settings.get(key) for settings in flat.values()]
        present = {cell for cell in cells if cell is not None}
        if len(present) > 1 or (key.is_name and None in cells):
            rows.append([shortened(printable(key.flag), LONGEST), *("–" if cell is None else cell for cell in cells)])
    if not rows:
        return None
    more = f" (the first {MOST} of {len(rows)})" if len(rows) > MOST else ""
    return Table(caption=f"What differs{more}", headings=["setting", *flat], rows=rows[:MOST])


class Key(NamedTuple):
    """A setting: its flag, and the component that it belongs to."""

    flag: str
    component: str = ""
    is_name: bool = False
    """True for the name of a component itself."""


def _flat(config: Mapping[str, Any]) -> dict[Key, str]:
    """Return the settings by their flags: `backbone.dim`, `lr`."""
    found = {}
    for table, values in config.items():
        if table in IGNORED or not isinstance(values, Mapping):
            continue
        component = str(values.get("name", ""))
        for key, value in values.items():
            flag = table if key == "name" else key if table == "training" else f"{table}.{key}"
            own = Key(flag.replace("_", "-"), "" if key == "name" else component, key == "name")
            found[own] = shortened(printable(_text(value)), LONGEST)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return f".../{os.path.basename(value.rstrip('/'))}" if os.path.isabs(value) else value
    return json.dumps(value, default=str).strip("[]")


def results_table(results: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the results of all runs: a row for each number, and a column for each run."""
    keys = dict.fromkeys(key for values in results.values() for key in values)
    rows = [[key, *(values.get(key, "–") for values in results.values())] for key in keys]
    return Table(caption="Results", headings=["", *results], rows=rows)


def results_of(losses: Mapping[str, float | None], status: str, evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Return the newest numbers of a run in words."""
    names = {"loss": "training loss, smoothed", "eps_loss": "loss of eps, smoothed", "held_out_loss": "held-out loss"}
    found = {"progress": status}
    found |= {names[key]: number(value) for key, value in losses.items() if value is not None}
    for evaluation in reversed(evaluations):
        for score in evaluation.scores:
            found[f"{score.metric} ({score.better} is better)"] = score.text
    return found
