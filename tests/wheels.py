"""Pack what a machine without network needs to run the tests on its GPU: `python tests/wheels.py wheels`.

The folder gets the wheel of this checkout, and those of its dependencies for one version of Python on Linux. torch and
what torch brings along come from the machine itself. `make test-gpu WHEELS=wheels` installs them there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FROM_TORCH = ("torch", "numpy", "nvidia", "triton", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec")
"""The beginnings of the names of packages that come with torch."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12)] + ["manylinux2014_x86_64"]
LARGEST = 60 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder for the wheels, which is created")
    parser.add_argument("--python", default="3.12", help="the version of Python on the machine (default: 3.12)")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    pip("wheel", "--no-deps", "--wheel-dir", asked.folder, ROOT)
    target = ("--python-version", asked.python, *(word for tag in PLATFORMS for word in ("--platform", tag)))
    pip("download", "--no-deps", "--only-binary", ":all:", "--dest", asked.folder, *target, *needed())
    wheels = sorted(asked.folder.glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.2f} MiB  {wheel.name}")
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{size / 2**20:6.2f} MiB in {len(wheels)} wheels")
    return int(size > LARGEST)


def needed() -> list[str]:
    """Return the dependencies that do not come with torch, each with its version: `rich==15.0.0`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    direct = [*project["dependencies"], *project["optional-dependencies"]["test-gpu"]]
    options = ("--dry-run", "--ignore-installed", "--report", "-", "-c", ROOT / "constraints.txt")
    packages = [package["metadata"] for package in json.loads(pip("install", *options, *direct))["install"]]
    return [f"{p['name']}=={p['version']}" for p in packages if not p["name"].lower().startswith(FROM_TORCH)]


def pip(*words: object) -> str:
    """Run pip, and return what it printed."""
    command = [sys.executable, "-m", "pip", words[0], "--quiet", *words[1:]]
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
