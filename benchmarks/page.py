"""docs/performance.md, .json and .png, written from the findings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.findings import digits

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES, PICTURE = DOCS / "performance.md", DOCS / "performance.json", DOCS / "images" / "performance.png"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->"
SHOWN = "![Bars for each benchmark, and curves of how cost grows](images/performance.png)"
FORMAT = 1

Found = Mapping[str, Any]
"""What `benchmarks.__main__.measured` gives."""


def section(name: str, found: Found) -> Iterator[str]:
    """The lines of a benchmark on the page."""
    yield f"### {found['title']} (`{name}`)"
    yield ""
    yield found["about"]
    for table in found["tables"]:
        yield ""
        yield from table_lines(table)
    yield ""
    yield from (f"- {line}" for line in (*found["notes"], machine_line(found)))
    yield ""


def table_lines(table: Found) -> Iterator[str]:
    """A row for each contender; one that is compared with several others has a row for each of them."""
    ratio = "times as fast" if table["kind"] == "speed" else "times as much"
    yield f"| {table['title']} | {table['unit']} | {ratio} | as | goal |"
    yield "|---|---|---|---|---|"
    for contender, median in table["medians"].items():
        rows = [row for row in table["comparisons"] if row["contender"] == contender]
        measured = digits(median)
        for row in rows or [{}]:
            yield f"| {contender} | {' | '.join(cells(row, measured))} |"
            measured = ""


def cells(row: Found, measured: str) -> tuple[str, str, str, str]:
    """(figure, ratio, reference, goal) of a comparison; without a reference the range is that of the figure itself."""
    if not row:
        return measured, "", "", ""
    spread = f"[{digits(row['low'])}, {digits(row['high'])}]"
    goal = row["goal"]
    verdict = "" if goal is None else f"{goal['text']}: {'met' if goal['met'] else 'not met'}"
    if row["reference"] is None:
        return f"{measured} {spread}".strip(), "", "", verdict
    return measured, f"{digits(row['median'])} {spread}", row["reference"], verdict


def machine_line(found: Found) -> str:
    facts = found["circumstances"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    quick = " A quick run: too rough to quote." if found["quick"] else ""
    return (
        f"Measured on {facts['date']} with {facts['cores']} cores of {facts['processor']} "
        f"(load {facts['load']} before), Python {facts['python']}, {versions}.{quick}"
    )


def write_json(path: Path, found: Mapping[str, Found]) -> None:
    text = json.dumps({"format": FORMAT, "benchmarks": found}, indent=1, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def update(found: Mapping[str, Found]) -> None:
    """Lay new findings over those that docs/ has, and write the page and its picture again."""
    from benchmarks.picture import draw

    before = json.loads(FIGURES.read_text(encoding="utf-8"))["benchmarks"] if FIGURES.exists() else {}
    together = {**before, **found}
    ordered = {name: together[name] for name in suite.NAMES if name in together}
    write_json(FIGURES, ordered)
    lines = [SHOWN, "", *(line for name, one in ordered.items() for line in section(name, one))]
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"(?<={BEGIN}).*?(?={END})", re.DOTALL)
    draw(ordered, PICTURE)
    PAGE.write_text(pattern.sub(lambda _: "\n".join(["", *lines, ""]), text), encoding="utf-8")
