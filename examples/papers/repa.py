"""Representation alignment (Yu et al., 2025, "Representation alignment for generation: training diffusion transformers
is easier than you think"), REPA.

Beside the loss of the velocity, hidden states of the network are drawn towards those that a frozen encoder has of the
clean image. A small network h projects the hidden state of each patch, and minus the cosine between both, averaged
over the patches, joins the loss with the weight lambda. A forward hook reads the hidden states, so any backbone will
do. The encoder is a program of torch.export: images (B, C, H, W) from -1 to 1 become (B, N, D) for N patches, or (B,
D, H, W). The paper takes DINOv2. The first command makes a small one of random weights, to try it:

    python examples/papers/repa.py encoder.pt2
    difftool train --plugin examples/papers/repa.py --loss repa --loss.encoder encoder.pt2 --loss.layer downs.1 \
        --backbone unet --dataset gradients --dataset.size 16 --schedule flow --steps 2000 --out runs/repa
    difftool sample runs/repa --steps 20
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import Loss, LossSpec, Predict, TrainingBatch, option


def patches(hidden: Tensor) -> Tensor:
    """Return hidden states (B, N, D), or (B, D, H, W), as (B, N, D)."""
    return hidden.flatten(2).mT if hidden.ndim == 4 else hidden


class Projection(nn.Module):
    """The projection h, which is trained. Lists hide the encoder and the layer, which are no parts of its state."""

    def __init__(self, spec: LossSpec, encoder: Path, layer: str, width: int) -> None:
        super().__init__()
        program: Any = torch.export.load(encoder).module()
        self.encoder, self.layer = [program.to(spec.device)], [spec.network.get_submodule(layer)]
        x, states = torch.zeros(2, *spec.shape, device=spec.device), list[Tensor]()
        with torch.no_grad(), self.layer[0].register_forward_hook(lambda *call: states.append(patches(call[2]))):
            spec.network(x, x.new_zeros(2))
        states.append(self.target(x))
        (_, count, size), (_, others, target) = (state.shape for state in states)
        if count != others:
            raise ValueError(f"layer: {layer} has {count} patches, and the encoder {others}")
        silu = nn.SiLU()
        self.h = nn.Sequential(nn.Linear(size, width), silu, nn.Linear(width, width), silu, nn.Linear(width, target))

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        return patches(self.encoder[0](x))


class REPA(Loss, name="repa"):
    """The squared error, minus lambda times the cosine between hidden states and those of a frozen encoder."""

    encoder: Path = option(help="program of torch.export, a .pt2 file")
    layer: str = option(help="name of the layer in the network, such as downs.1")
    weight: float = option(default=0.5, ge=0, help="lambda, the weight of the alignment")
    width: int = option(default=2048, ge=1, help="units of the projection")

    def build(self, spec: LossSpec) -> Projection:
        return Projection(spec, self.encoder, self.layer, self.width)

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        assert isinstance(auxiliary, Projection)
        states = list[Tensor]()
        with auxiliary.layer[0].register_forward_hook(lambda *call: states.append(patches(call[2]))):
            prediction = predict(batch.x_t, batch.t, batch.cond)
        cosine = F.cosine_similarity(auxiliary.h(states[-1].float()), auxiliary.target(batch.x_0), dim=2).mean(1)
        return (prediction - batch.target).square().flatten(1).mean(1) - self.weight * cosine


if __name__ == "__main__":
    encoder, batch = nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.Tanh()), torch.export.Dim("batch")
    program = torch.export.export(encoder, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, sys.argv[1])
