"""A folder of sounds: `folders` finds the files, and `audio` reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from difftool import Dataset, option, printable
from difftool_plugins.datasets.folders import Labels, classes_of, kept, labels_option, list_files, report
from difftool_plugins.datasets.options import GIB_IN_MEMORY, bytes_in_memory, skip_bad_option

if TYPE_CHECKING:
    from difftool import DatasetContext, Samples

EXTENSIONS = (".wav", ".wave")


class SoundFolder(Dataset, name="sound-folder"):
    """Your own sounds: every WAV file in a folder and its sub-folders.

    Each item is a part of a file, with amplitudes from -1 to 1; a shorter file is padded with zeros. All files have one
    rate. If there are at least two sub-folders and all sounds lie in them, the sub-folders are classes, unless they are
    called `train`, `test` and the like.
    """

    default_backbone = "unet"

    path: Path = option(help="folder of sounds; hidden files and folders are skipped")
    length: int = option(
        default=16_384, ge=1, le=2**24, help="samples of each item; the U-Net halves it, so take a power of 2"
    )
    rate: int | None = option(
        default=None,
        ge=1,
        le=10**6,
        help="rate of the files in Hz; files are not resampled",
        otherwise="that of the first file",
    )
    channels: int = option(default=1, ge=1, le=2, help="1 mixes the channels of a file, 2 is stereo")
    labels: Labels = labels_option("sounds")
    crop: Literal["center", "random"] = option(
        default="center", help="center: the middle part of each file; random: another part each time"
    )
    skip_bad: bool = skip_bad_option("files")
    memory: float | None = option(
        default=None,
        ge=0,
        help="GiB of sounds to hold in memory; larger sets, and random crops, are read while training",
        otherwise=f"{GIB_IN_MEMORY:g}",
    )

    def load(self, context: DatasetContext) -> Samples:
        import torch

        from difftool import Samples
        from difftool_plugins.datasets.audio.files import RandomParts, SoundFiles, check_all, fingerprint, units

        root = os.path.abspath(self.path.expanduser())
        found = list_files(root, EXTENSIONS, "sounds")
        every = [found[i] for i in kept(found, self.labels, "sounds")]
        paths = [os.path.join(root, name) for name in every]
        good, errors = check_all(paths, self.channels, self.rate, self.skip_bad)
        report(errors, len(every), "sound files", f" in {printable(root)}")
        names, wavs = [every[i] for i in good], list(good.values())
        files = SoundFiles(wavs, self.channels, self.length)
        items: Any = files
        if self.crop == "random":
            items = RandomParts(files)
        elif len(files) * self.channels * self.length * 4 <= bytes_in_memory(self.memory):
            items = torch.stack([files[i] for i in range(len(files))])
        scaling: dict[str, Any] = units(files)
        return Samples(
            items=items,
            shape=self.item_shape(),
            item_ids=names,
            fingerprint=f"{fingerprint(wavs, names)} {self.crop}",
            form="sound",
            rate=wavs[0].rate,
            **classes_of([root], names, self.labels, "sounds"),
            **scaling,
        )

    def item_shape(self) -> tuple[int, int]:
        return self.channels, self.length
