"""WAV files of one rate: check them, and read a part of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difftool import printable
from difftool_plugins.datasets.arrays.arrangement import check_range, sound_units
from difftool_plugins.sounds.wav import FLOAT, Wav, open_wav

MEASURED = 512
"""The number of files whose deviation scales the sounds."""
PIECE = 2**20
"""Amplitudes of a channel that are checked at once."""


@dataclass(frozen=True)
class SoundFiles:
    """A map-style source of the middle parts of sounds, padded with zeros at the end."""

    wavs: Sequence[Wav]
    channels: int
    length: int

    def __len__(self) -> int:
        return len(self.wavs)

    def __getitem__(self, i: int) -> Tensor:
        return self.read(i, 0.5)

    def read(self, i: int, place: float) -> Tensor:
        """Return amplitudes (channels, length) of sound i at a place from 0 to 1. Raises `ValueError` and `OSError`."""
        wav = self.wavs[i]
        count = min(self.length, wav.length)
        x = amplitudes(wav, int(place * (wav.length - count)), count)
        if self.channels == 1:
            x = x.mean(0, keepdim=True)
        padded = torch.zeros(self.channels, self.length)
        padded[:, :count] = x  # one channel becomes two equal ones
        return padded


@dataclass(frozen=True)
class RandomParts:
    """A map-style source of sounds that training crops at random, and all else in the middle."""

    files: SoundFiles

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.files[i]

    def draw(self, i: int, seed: int) -> Tensor:
        """Return a part of sound i at a place that is a function of the seed. Raises `ValueError` and `OSError`."""
        return self.files.read(i, seed % 2**31 / (2**31 - 1))


def amplitudes(wav: Wav, first: int, count: int) -> Tensor:
    """Return amplitudes (channels, count) of a file. Raises `ValueError` and `OSError`."""
    x = torch.from_numpy(wav.read(first, count))
    check_range(x, -1, 1, f"{printable(wav.path)}: the amplitudes reach", "scale the file down")
    return x


def check_all(
    paths: Sequence[str], channels: int, rate: int | None, skip_bad: bool
) -> tuple[dict[int, Wav], list[str]]:
    """Return the headers of good files by number, and the errors of bad ones.

    With `skip_bad`, files of floats are read whole, since they may hold amplitudes beyond the range. Raises
    `ValueError` for the first bad file, unless `skip_bad` is set.
    """
    good: dict[int, Wav] = {}
    errors: list[str] = []
    for i, path in enumerate(paths):
        try:
            wav = open_wav(path)
            if rate is not None and wav.rate != rate:
                raise ValueError(f"{printable(path)} has a rate of {wav.rate} Hz, and not {rate}; convert it")
            if channels == 2 and wav.channels > 2:
                raise ValueError(f"{printable(path)} has {wav.channels} channels; --dataset.channels 1 mixes them")
            if skip_bad and wav.kind[0] == FLOAT:
                for start in range(0, wav.length, PIECE):
                    amplitudes(wav, start, min(PIECE, wav.length - start))
        except (OSError, ValueError) as error:
            text = f"{printable(path)}: {error.strerror}" if isinstance(error, OSError) else str(error)
            if not skip_bad:
                raise ValueError(f"{text}; or use --dataset.skip-bad to leave such files out") from None
            errors.append(text)
        else:
            rate = wav.rate
            good[i] = wav
    return good, errors


def units(files: SoundFiles) -> dict[str, object]:
    """Return shift, scale and bounds of sounds, from files at equal distances in their order."""
    rows = range(0, len(files), -(-len(files) // MEASURED))
    mean = power = 0.0
    for i in rows:
        x = files[i].to(torch.float64)
        mean, power = mean + float(x.mean()) / len(rows), power + float(x.square().mean()) / len(rows)
    return sound_units(max(power - mean**2, 0.0) ** 0.5)


def fingerprint(wavs: Sequence[Wav], names: Sequence[str]) -> str:
    """Return the SHA-256 of names and headers, but not of times: a copy of the folder holds the same data."""
    sha = hashlib.sha256()
    for wav, name in zip(wavs, names, strict=True):
        sha.update(os.fsencode(name) + f"\0{wav.kind} {wav.rate} {wav.channels} {wav.length}\0".encode())
    return sha.hexdigest()
