"""Captions: texts whose words become tokens."""

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


def caption_rows(captions: Sequence[object], where: str, length: int, room: float) -> Tensor | CaptionRows:
    """Return the tokens of captions, in memory if they fit into `room` bytes.

    Warns of captions that are longer. Raises `ValueError` for values that are not texts; `where` names their place.
    """
    texts = []
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"captions: {where} must hold texts, not {caption!r:.60} (item {i})")
        texts.append(caption)
    counts = [len(words_of(text)) for text in texts]
    if longer := [count for count in counts if count > length]:
        warnings.warn(
            f"{len(longer)} of {len(texts)} captions have more than {length} words, and end there; the longest has "
            f"{max(longer)} (--dataset.words)",
            stacklevel=4,
        )
    source = CaptionRows(texts, length)
    fits = len(texts) * length * (WORD + PLACE) * 4 <= room
    return torch.stack([source[i] for i in range(len(source))]) if fits else source


def read_captions(paths: Sequence[str], suffix: str) -> list[str]:
    """Return the captions of images at these paths: the files beside them of the same name with another suffix.

    Raises `ValueError` for a caption that is missing or cannot be read.
    """
    return [_read(f"{os.path.splitext(path)[0]}.{suffix}", path) for path in paths]


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
