"""Captions: a text file beside each image, whose words become tokens."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difftool import printable

WORD, PLACE = 64, 16
"""The numbers of a token that tell the word, and those that tell its place."""
MAX_BYTES = 2**16
"""The largest file of a caption."""


def words_of(caption: str) -> list[str]:
    """Return the words of a caption in lower case; a punctuation mark is a word too."""
    return re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", caption).casefold())


@lru_cache(maxsize=2**16)
def _signs(word: str) -> np.ndarray:
    bits = np.frombuffer(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[: WORD // 8], np.uint8)
    return np.unpackbits(bits).astype(np.float32) * 2 - 1


def tokens_of(caption: str, length: int) -> Tensor:
    """Return the tokens of the first `length` words, float32 (length, WORD + PLACE).

    A word is a fixed vector of random signs, a function of its letters, so that words need no table and nearly all
    pairs are nearly orthogonal: the layer that the network applies to tokens learns what they mean. Sines and cosines
    of its place follow (Vaswani et al., 2017, section 3.5). Tokens after the last word are zero.
    """
    tokens = np.zeros((length, WORD + PLACE), np.float32)
    words = words_of(caption)[:length]
    angles = np.arange(len(words))[:, None] / 1000.0 ** (np.arange(PLACE // 2) / (PLACE // 2))
    tokens[: len(words), WORD:] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    for k, word in enumerate(words):
        tokens[k, :WORD] = _signs(word)
    return torch.from_numpy(tokens)


@dataclass
class CaptionRows:
    """A map-style source of the tokens of captions."""

    captions: Sequence[str]
    length: int

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> Tensor:
        return tokens_of(self.captions[i], self.length)


def captions_of(paths: Sequence[str], length: int, room: float) -> tuple[Tensor | CaptionRows, str]:
    """Return the tokens of images at these paths, in memory if they fit into `room` bytes, and a text of their content.

    Raises `ValueError` for a caption that is missing or cannot be read.
    """
    captions = [_read(os.path.splitext(path)[0] + ".txt", path) for path in paths]
    longer = [i for i, caption in enumerate(captions) if len(words_of(caption)) > length]
    if longer:
        longest = max(len(words_of(captions[i])) for i in longer)
        warnings.warn(
            f"{len(longer)} of {len(captions)} captions have more than {length} words, and end there; the longest has "
            f"{longest}: --dataset.captions {longest} takes all",
            stacklevel=4,
        )
    text = hashlib.sha256("\0".join(captions).encode("utf-8", "surrogatepass")).hexdigest()
    source = CaptionRows(captions, length)
    fits = len(captions) * length * (WORD + PLACE) * 4 <= room
    return torch.stack([source[i] for i in range(len(source))]) if fits else source, f"captions {length} {text}"


def _read(path: str, image: str) -> str:
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError(f"captions: {printable(path)} is not a file")
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f"captions: {printable(path)} has more than {MAX_BYTES // 1024} KiB")
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"captions: {printable(image)} has no caption; {printable(os.path.basename(path))} must lie beside it "
            "(an empty file is an empty caption)"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"captions: {printable(path)} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"captions: {printable(path)}: {error.strerror}") from None
