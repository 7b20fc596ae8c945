"""`python -m benchmarks [NAMES...] [--quick] [--json FILE] [--docs]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import suite
from benchmarks.findings import Effort


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    for name in asked.names:
        if name not in suite.NAMES:
            parser().error(f"there is no benchmark {name!r}; choose from {', '.join(suite.NAMES)}")
    if asked.docs and asked.quick:
        parser().error("--docs: a quick run is too rough for the page; leave one of them out")
    warnings.filterwarnings("ignore", category=FutureWarning)  # peers' own
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # so that the first compile is a first one
        names = asked.names or [name for name in suite.NAMES if name not in suite.ASKED_FOR]
        report(names, Effort(asked.quick), asked.json, docs=asked.docs)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m benchmarks", description="Measure difftool beside what else there is.")
    known = f"{', '.join(suite.NAMES)}; by default all of them but {' and '.join(suite.ASKED_FOR)}"
    made.add_argument("names", nargs="*", metavar="NAME", help=known)
    made.add_argument("--quick", action="store_true", help="few rounds: to see that it runs, not what it measures")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures of this run, round by round")
    made.add_argument("--docs", action="store_true", help="write them into docs/performance.md, .json and its picture")
    return made


def report(names: Sequence[str], effort: Effort, file: Path | None, *, docs: bool) -> None:
    """Run benchmarks. Each is printed and written once it is done: none is lost where a later one fails."""
    from benchmarks import page

    found: dict[str, Any] = {}
    for name in names:
        found[name] = measured(name, effort)
        print("\n".join(page.section(name, found[name])), flush=True)
        if file is not None:
            page.write_json(file, found)
        if docs:
            page.update({name: found[name]})


def measured(name: str, effort: Effort) -> dict[str, Any]:
    """A benchmark's findings as plain values, with what they depend on."""
    from benchmarks.machine import circumstances

    benchmark, title, about = suite.load(name)
    print(f"{name}: {title} ...", file=sys.stderr, flush=True)
    facts, start = circumstances(), time.perf_counter()
    findings = benchmark.run(effort)
    seconds = round(time.perf_counter() - start, 1)
    heading = {"title": title, "about": about, "quick": effort.quick, "seconds": seconds}
    return {**heading, "circumstances": facts, **findings.document()}


if __name__ == "__main__":
    sys.exit(main())
