"""Pictures made small enough for a page, within a number of bytes that all of them share.

Files come from run folders that strangers may have made: only PNG files of a sane size that lie in the run are opened.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from difftool.diffusion.visible import spread
from difftool.errors import BadFile, one_line
from difftool.files import read_bounded
from difftool.paths import is_inside
from difftool.report.content import Picture

if TYPE_CHECKING:
    from PIL import Image

    from difftool.figures.style import Pixels

LARGEST_FILE, LARGEST_PICTURE = 64 * 2**20, 40_000_000
"""The limits for the bytes and the pixels of a picture that is opened."""
SIDES = (1000, 720, 480)
"""The largest sides in pixels, one after the other, until the pictures fit."""
QUALITY = 82


@dataclass(frozen=True)
class Encoded:
    """A picture as a WebP file."""

    data: bytes
    width: int
    height: int
    label: str
    alt: str

    @property
    def size(self) -> int:
        """The bytes that it takes on the page, in base 64."""
        return 4 * math.ceil(len(self.data) / 3) + 32

    def picture(self) -> Picture:
        source = f"data:image/webp;base64,{base64.b64encode(self.data).decode()}"
        return Picture(source=source, alt=self.alt, width=self.width, height=self.height, label=self.label)


def read_picture(path: Path, run: Path, *, label: str, alt: str) -> Encoded:
    """Return a PNG file of a run. Raises `BadFile`, which names the file."""
    from PIL import Image

    if not is_inside(path, run):
        raise BadFile(f"{path.name} leads out of the run folder")
    try:
        with Image.open(io.BytesIO(read_bounded(path, LARGEST_FILE)), formats=("PNG",)) as image:
            if image.width * image.height > LARGEST_PICTURE:
                raise BadFile(f"{path.name} has {image.width} x {image.height} pixels, which is too large for a page")
            return encode(_over_white(image), label=label, alt=alt)
    except BadFile:
        raise
    except Exception as error:  # what a broken file makes of a decoder is anybody's guess
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({_short(error)})"
        raise BadFile(f"{path.name} {reason}") from None


def _short(error: Exception) -> str:
    reason = getattr(error, "strerror", None)
    return reason if isinstance(reason, str) else "no PNG file" if "identify" in one_line(error) else one_line(error)


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode in ("RGB", "L"):
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_pixels(pixels: Pixels, *, label: str, alt: str) -> Encoded:
    """Return RGB pixels (H, W, 3) as a picture."""
    from PIL import Image

    return encode(Image.fromarray(pixels), label=label, alt=alt)


def encode(image: Image.Image, *, label: str, alt: str, side: int = SIDES[0]) -> Encoded:
    """Return a picture whose longer side has at most `side` pixels: without loss where that takes fewer bytes."""
    image = _limited(image, side)
    files = []
    for settings in ({"lossless": True, "quality": 30}, {"quality": QUALITY}):
        file = io.BytesIO()
        image.save(file, "WEBP", method=2, **settings)
        files.append(file.getvalue())
    return Encoded(min(files, key=len), image.width, image.height, label, alt)


def _limited(image: Image.Image, side: int) -> Image.Image:
    from PIL import Image

    longer = max(image.size)
    if longer <= side:
        return image
    size = tuple(max(1, round(length * side / longer)) for length in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def _smaller(one: Encoded, side: int) -> Encoded:
    from PIL import Image

    if max(one.width, one.height) <= side:
        return one
    with Image.open(io.BytesIO(one.data), formats=("WEBP",)) as image:
        return encode(image.convert("RGB"), label=one.label, alt=one.alt, side=side)


@dataclass(frozen=True)
class Fitted:
    """The pictures of a group that fit."""

    pictures: Sequence[Encoded]
    left_out: int = 0


def fit(groups: Sequence[Sequence[Encoded]], most: int) -> list[Fitted]:
    """Return the pictures of all groups within `most` bytes.

    They are made smaller first. If that is not enough, each group gets the same share, and what one does not need goes
    to the others; of a group that is too large, some pictures are kept, evenly spread, the first and last among them.
    """
    for side in SIDES:
        groups = [[_smaller(one, side) for one in group] for group in groups]
        if sum(one.size for group in groups for one in group) <= most:
            return [Fitted(group) for group in groups]
    fitted: dict[int, Fitted] = {}
    left = most
    by_size = sorted(range(len(groups)), key=lambda i: sum(one.size for one in groups[i]))
    for place, i in enumerate(by_size):
        fitted[i] = _thinned(groups[i], left // (len(groups) - place))
        left -= sum(one.size for one in fitted[i].pictures)
    return [fitted[i] for i in range(len(groups))]


def _thinned(group: Sequence[Encoded], most: int) -> Fitted:
    for count in range(len(group), 0, -1):
        kept = [group[i] for i in spread(range(len(group)), count)]
        if sum(one.size for one in kept) <= most:
            return Fitted(kept, len(group) - count)
    return Fitted((), len(group))


def relabelled(one: Encoded, label: str) -> Encoded:
    """Return a picture with another label."""
    return replace(one, label=label)
