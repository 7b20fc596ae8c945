"""Cut square patches from scikit-learn's and scikit-image's sample photographs, into a folder of PNG files.

    python examples/tutorials/patches.py patches
    difftool train --dataset image-folder --dataset.path patches

The photographs come with the two packages: nothing is downloaded. Each patch is cut at a random place, a quarter to the
whole of the photograph's shorter side wide, and scaled to --size. FOLDER/coffee-0042.png is patch 42, of a cup. Six
photographs are cut unless --of names others: `--of tissue` cuts a stained section of tissue under the microscope.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIX = ("china", "flower", "astronaut", "cat", "coffee", "rocket")
"""The photographs that are cut by default."""
OTHERS = ("tissue", "stars", "retina")
SMALLEST = 0.25
"""Side of the smallest patch, as part of the photograph's shorter side."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cut patches from sample photographs into a folder of PNG files.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that is new or empty")
    parser.add_argument("-n", type=int, default=3000, help="number of patches, 1 to 100000 (default: 3000)")
    parser.add_argument("--size", type=int, default=16, help="side of a patch in pixels, 4 to 256 (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="where the patches lie is a function of it (default: 0)")
    parser.add_argument(
        "--of", nargs="+", choices=SIX + OTHERS, default=SIX, metavar="NAME", help=f"{', '.join(SIX + OTHERS)}"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.n <= 100_000:
        parser.error(f"-n must be 1 to 100000, not {options.n}")
    if not 4 <= options.size <= 256:
        parser.error(f"--size must be 4 to 256, not {options.size}")
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, not {options.seed}")
    try:
        return write(options.folder, options.of, options.n, options.size, options.seed)
    except OSError as error:
        return fail(str(error))


def write(folder: Path, names: Sequence[str], count: int, size: int, seed: int) -> int:
    """Write the patches, as many of each photograph, and return the exit code."""
    if folder.exists() and not folder.is_dir():
        return fail(f"{folder} is not a folder; give another name")
    if folder.is_dir() and any(folder.iterdir()):
        return fail(f"{folder} is not empty; give another name")
    try:
        photographs = {name: load(name) for name in names}
    except ModuleNotFoundError as error:
        return fail(f"{error.name} is not installed; try: pip install scikit-learn scikit-image")
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    images = {name: Image.fromarray(pixels) for name, pixels in photographs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = names[number % len(names)]
        image = images[name]
        side = int(min(image.size) * random.uniform(SMALLEST, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in image.size)
        patch = image.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
        patch.save(folder / f"{name}-{number:04d}.png")
    plural = "photograph" if len(names) == 1 else "photographs"
    print(f"{count} patches of {size}x{size} pixels from {len(names)} {plural}:", file=sys.stderr)
    print(folder)
    return 0


def load(name: str) -> Any:
    """Return a photograph as an array (height, width, 3) of uint8."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return load_sample_image(f"{name}.jpg")
    names = {"cat": "chelsea", "tissue": "immunohistochemistry", "stars": "hubble_deep_field"}
    return getattr(skimage.data, names.get(name, name))()


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
