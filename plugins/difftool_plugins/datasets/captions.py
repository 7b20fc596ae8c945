"""Captions as tokens: each word becomes a fixed vector, which needs no trained text encoder."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WORDS, SIZE = 24, 64
"""The words of a caption that count, and the numbers of each."""


@dataclass(frozen=True)
class CaptionTokens:
    """A map-style source of the tokens of captions."""

    captions: Sequence[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, i: int) -> Tensor:
        return caption_tokens(self.captions[i])


def caption_tokens(caption: str) -> Tensor:
    """Return the tokens (24, 64) of a caption: a row for each of its first words, and rows of zeros behind them.

    A row is the sum of a vector that the word determines, as feature hashing has it (Weinberger et al., 2009, "Feature
    Hashing for Large Scale Multitask Learning"), and a sinusoid of its position (Vaswani et al., 2017, section 3.5).
    Capitals and punctuation do not count.
    """
    words = re.findall(r"\w+", caption.casefold())[:WORDS]
    tokens = np.zeros((WORDS, SIZE), dtype=np.float32)
    for k, word in enumerate(words):
        tokens[k] = _word(word) + _position(k)
    return torch.from_numpy(tokens)


@lru_cache(maxsize=10_000)
def _word(word: str) -> np.ndarray:
    """Return a vector with entries of mean 0 and deviation 1."""
    raw = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(SIZE)
    return (np.frombuffer(raw, np.uint8).astype(np.float32) - 127.5) / 73.9


@lru_cache(maxsize=WORDS)
def _position(k: int) -> np.ndarray:
    rates = np.exp(-math.log(WORDS) * np.arange(SIZE // 2) / (SIZE // 2))
    return np.concatenate([np.sin(k * rates), np.cos(k * rates)]).astype(np.float32)


def tokens_of(captions: Sequence[object], where: str, memory: float | None) -> Tensor | CaptionTokens:
    """Return the tokens of captions, in memory if they fit into `memory` GiB. Raises `ValueError` for other values."""
    texts = []
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"captions: {where} must hold texts, not {caption!r:.60} (item {i})")
        texts.append(caption)
    fits = len(texts) * WORDS * SIZE * 4 <= (1.0 if memory is None else memory) * 2**30
    return torch.stack([caption_tokens(text) for text in texts]) if fits else CaptionTokens(texts)
