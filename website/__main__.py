"""`python -m website [--out site]`: build the documentation, and fail where a page or a link is wrong."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from website import links, sources
from website.places import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m website", description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="DIR", help="folder of the site")
    out = parser.parse_args(arguments).out.resolve()
    work = ROOT / "build" / "site"
    problems = sources.write(work / "pages")
    if not problems:
        settings = ("-c", Path(__file__).parent, "-d", work / "read", "-j", "auto", "-W", "--keep-going", "-q")
        done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", *settings, work / "pages", out])
        if done.returncode != 0:
            return 1
        problems = links.problems(out)
    print("\n".join(problems) if problems else f"{out / 'index.html'}", file=sys.stderr if problems else sys.stdout)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
