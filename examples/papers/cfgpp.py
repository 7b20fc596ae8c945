"""CFG++: manifold-constrained classifier free guidance for diffusion models (Chung et al., ICLR 2025).

The step of DDIM renoises the guided x_0 with the guided eps, which leads off the manifold of the data. CFG++ takes the
eps without the condition instead, and a scale lambda below 1 (algorithm 2):

  x_s = alpha_s x_0(eps_u + lambda (eps_c - eps_u)) + sigma_s eps_u

That is DDIM with the scale lambda/(1 - q), q = alpha_t sigma_s/(alpha_s sigma_t), which differs from step to step.
Guidances leave the estimate without a condition in `Estimate.unconditional`. Without guidance, as with the scale 1,
this is ddim.

    difftool train --config examples/papers/cfg.toml --out runs/cfg
    difftool sample runs/cfg --plugin examples/papers/cfgpp.py --sampler cfgpp --label 0 --guidance 0.2 --out cfgpp.png
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from difftool import Denoise, Level, Noise, Sampler, Step


class CFGpp(Sampler, name="cfgpp"):
    """DDIM that renoises with the unconditional eps; choose a --guidance below 1 (Chung et al., 2025)."""

    def claimed_order(self) -> int:
        return 1

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(levels):
            guided = denoise(x, t)
            unconditional = guided.unconditional or guided
            x = s.alpha * guided.x_0 + s.sigma * unconditional.eps
            yield Step(x, s, guided)
