"""Masked diffusion (Sahoo et al., 2024, "Simple and effective masked diffusion language models"; Shi et al., 2024,
"Simplified and generalized masked diffusion for discrete data").

Noise replaces tokens by a mask, independently and with the probability sigma at a level, and the network predicts the
tokens. An item (K, L) holds L tokens of K kinds as columns of zeros and a one; a masked token is a column of zeros. On
the schedule flow, where sigma = u, the loss is the continuous bound of the likelihood: the cross-entropy of masked
tokens over u (Sahoo et al., section 3.4; Shi et al., section 3). The prediction x0 makes the output of the network the
logits of the tokens. The sampler reveals a masked token with the probability (sigma_t - sigma_s)/sigma_t in a step
from t to s (Sahoo et al., section 3.2), and never changes it after that.

    difftool train --plugin examples/papers/masked_diffusion.py --dataset words --loss masked --schedule flow \
        --prediction x0 --steps 2000 --out runs/words
    difftool sample runs/words --plugin examples/papers/masked_diffusion.py --sampler unmask -n 8 --out words.npy
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difftool import (
    Dataset,
    DatasetContext,
    Denoise,
    Level,
    Loss,
    Noise,
    Predict,
    Sampler,
    Samples,
    Step,
    TrainingBatch,
    option,
)


class Words(Dataset, name="words"):
    """Words of letters in the order of the alphabet, from any letter on: cdabcd."""

    default_backbone = "mlp"
    generated = True

    n: int = option(default=10_000, ge=1, help="number of words")
    letters: int = option(default=4, ge=2, help="size of the alphabet, K")
    length: int = option(default=6, ge=1, help="letters of a word, L")

    def load(self, context: DatasetContext) -> Samples:
        first = torch.randint(self.letters, (self.n, 1), generator=context.generator("words"))
        words = (first + torch.arange(self.length)) % self.letters
        return Samples(items=F.one_hot(words, self.letters).mT.float(), shape=(self.letters, self.length))


class Masked(Loss, name="masked"):
    """The cross-entropy of the masked tokens, divided by sigma: a bound of -ln p of an item, in nats."""

    def loss(self, predict: Predict, batch: TrainingBatch, auxiliary: nn.Module | None) -> Tensor:
        if batch.x_0.ndim != 3:
            raise ValueError("it takes items (K, L): L tokens, each of them a one among K numbers")
        _, sigma = batch.levels(batch.t)
        u = torch.rand(batch.x_0[:, :1].shape, generator=batch.generator(), device=batch.x_0.device)
        masked = u < sigma
        logits = predict(batch.x_0.masked_fill(masked, 0), batch.t, batch.cond)
        entropy = -(batch.x_0 * logits.log_softmax(1)).sum(1, keepdim=True)
        return (masked * entropy / sigma).flatten(1).sum(1)


class Unmask(Sampler, name="unmask"):
    """Reveal masked tokens at random, by the distribution that the network predicts."""

    default_steps = 20

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        x = torch.zeros_like(x)  # all tokens are masked
        for step, (t, s) in enumerate(pairwise(levels)):
            estimate = denoise(x, t)
            u, v = (torch.special.ndtr(noise(2 * step + i)) for i in range(2))  # uniform in [0, 1]
            gumbel = -(-u.clamp(1e-7, 1 - 1e-7).log()).log()
            token = F.one_hot((estimate.x_0 + gumbel).argmax(1), x.shape[1]).mT.to(x)
            reveal = (x.sum(1, keepdim=True) == 0) & (v.narrow(1, 0, 1) < (t.sigma - s.sigma) / t.sigma)
            x = torch.where(reveal, token, x)
            yield Step(x, s, estimate)
