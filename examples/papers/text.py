"""Text by cross-attention, as in GLIDE (Nichol et al., 2022) and Latent Diffusion (Rombach et al., 2022, section 3.3).

Every pixel of a U-Net attends to the words of a prompt. The built-in U-Net does so with whatever tokens the data bring,
so a tokenizer is all that is missing. Here a word is a one-hot token: the linear layer that the network applies to
tokens is then a table of embeddings, learnt from scratch. Numbers of a large text encoder take the same place.

    difftool train --plugin examples/papers/text.py --dataset captions --backbone.dim 16 --backbone.dim-mults 1,2 \
      --backbone.attention full --steps 3000 --batch-size 64 --lr 2e-3 --out runs/text
    difftool sample runs/text --plugin examples/papers/text.py --tokens "a red disc" --guidance 2 --out red-disc.png
    difftool sample runs/text --plugin examples/papers/text.py --tokens "a cross" -n 16 --out crosses.png
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from difftool import PIXELS, ConditionSpec, Dataset, DatasetContext, Samples, option

COLOURS = {"red": (220, 50, 40), "green": (60, 170, 70), "blue": (50, 90, 210), "yellow": (230, 200, 50)}
SHAPES = ("disc", "square", "cross")
WORDS = ("", "a", *COLOURS, *SHAPES)
"""The vocabulary. The empty word fills prompts up to their length."""
LENGTH = 3


def tokens_of(prompt: str) -> Tensor:
    """Return the one-hot tokens of a prompt (LENGTH, len(WORDS)). Raises `ValueError`."""
    words = prompt.lower().split()
    if unknown := [word for word in words if word not in WORDS]:
        raise ValueError(f"unknown word {unknown[0]!r}; there are {', '.join(WORDS[1:])}")
    if len(words) > LENGTH:
        raise ValueError(f"a prompt has at most {LENGTH} words, not {len(words)}")
    numbers = [WORDS.index(word) for word in [*words, *[""] * (LENGTH - len(words))]]
    return F.one_hot(torch.tensor(numbers), len(WORDS)).float()


def inside(shape: str, y: Tensor, x: Tensor, radius: Tensor) -> Tensor:
    """Return where the shape is, at distances y and x from its middle."""
    if shape == "disc":
        return y.square() + x.square() < radius**2
    near = torch.maximum(y.abs(), x.abs()) < radius
    return near if shape == "square" else near & (torch.minimum(y.abs(), x.abs()) < radius / 3)


class Captions(Dataset, name="captions"):
    """Coloured shapes with captions such as "a red disc", some of which leave the colour out."""

    default_backbone = "unet"
    generated = True

    n: int = option(default=6000, ge=1, help="number of images")
    size: int = option(default=16, ge=8, le=256, help="height and width")

    def load(self, context: DatasetContext) -> Samples:
        random = context.generator("captions")
        u = torch.rand(self.n, 4, generator=random)
        y, x = torch.arange(self.size)[:, None] + 0.5, torch.arange(self.size) + 0.5
        images, tokens = [], []
        for row, column, size, plain in u:
            radius = self.size * (0.15 + 0.15 * size)
            shape = SHAPES[int(torch.randint(len(SHAPES), (), generator=random))]
            colour = [*COLOURS][int(torch.randint(len(COLOURS), (), generator=random))]
            middle = (self.size * (0.3 + 0.4 * row), self.size * (0.3 + 0.4 * column))
            painted = inside(shape, y - middle[0], x - middle[1], radius)
            images.append(torch.where(painted, torch.tensor(COLOURS[colour]).view(3, 1, 1), 245).to(torch.uint8))
            tokens.append(tokens_of(f"a {shape}" if plain < 0.2 else f"a {colour} {shape}"))
        shape_of_item = (3, self.size, self.size)
        return Samples(items=torch.stack(images), shape=shape_of_item, tokens=torch.stack(tokens), **PIXELS)

    def read_condition(self, field: str, text: str, spec: ConditionSpec) -> Tensor | None:
        return None if text.endswith(".npy") else tokens_of(text)
