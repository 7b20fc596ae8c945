"""Write scikit-learn's handwritten digits as a folder of PNG files, one sub-folder a class.

    python examples/tutorials/digits.py digits
    difftool train --dataset image-folder --dataset.path digits --dataset.size 16 --dataset.channels 1

The 1,797 scans are 8x8 pixels, gray; they are scaled up to --size. FOLDER/7/0042.png is scan number 42, a seven.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SCANNED = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write scikit-learn's handwritten digits as class folders of PNG files."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder that is new or empty")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels, 8 to 256 (default: 16)")
    options = parser.parse_args(arguments)
    if not SCANNED <= options.size <= 256:
        parser.error(f"--size must be 8 to 256, not {options.size}")
    try:
        return write(options.folder, options.size)
    except OSError as error:
        return fail(str(error))


def write(folder: Path, size: int) -> int:
    """Write all scans. Returns the exit code."""
    if folder.exists() and not folder.is_dir():
        return fail(f"{folder} is not a folder; give another name")
    if folder.is_dir() and any(folder.iterdir()):
        return fail(f"{folder} is not empty; give another name")
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        return fail("scikit-learn, which holds the digits, is not installed; try: pip install scikit-learn")
    from PIL import Image

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # the scans hold 0 (paper) to 16 (ink)
    for label in digits.target_names:
        (folder / str(label)).mkdir(parents=True)
    for number, (scan, label) in enumerate(zip(pixels, digits.target, strict=True)):
        image = Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / str(label) / f"{number:04d}.png")
    print(f"{len(pixels)} images of {size}x{size} pixels in {len(digits.target_names)} classes:", file=sys.stderr)
    print(folder)
    return 0


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
