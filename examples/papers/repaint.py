r"""RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., CVPR 2022).

`sample --inpaint` puts the known pixels into each estimate of x_0. A step of DDPM then draws these pixels from the
forward process (eq. 8a, here as q(x_s | x_t, x_0), which has the same marginal) and the others from the model (eq. 8b).
Steps that are made once hardly bring the two into harmony. So RePaint resamples (section 4.2): every j steps it
diffuses the state j levels back up and makes these steps again, r times in all. White in the mask is painted.

    difftool train --config examples/papers/ddpm.toml --out runs/ddpm
    difftool sample --oracle ideal --dataset gradients -n 1 --out photos
    difftool sample runs/ddpm --plugin examples/papers/repaint.py --sampler repaint --inpaint photos/0000.png \
      --mask mask.png --out painted.png
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, pairwise

from torch import Tensor

from difftool import Denoise, Estimate, Level, Noise, Sampler, Step, option


class RePaint(Sampler, name="repaint"):
    """DDPM that jumps back up and repeats its steps, for --inpaint (Lugmayr et al., 2022, algorithm 1)."""

    default_steps = 250

    jump: int = option(default=10, ge=1, le=1000, help="j, the length of a jump in steps")
    resamplings: int = option(default=10, ge=1, le=1000, help="r, how often the steps of a jump are made; 1 is ddpm")

    def claimed_calls(self, steps: int) -> int:
        return steps + self.jump * (self.resamplings - 1) * len(range(0, steps - self.jump, self.jump))

    def sample(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
        number = count()  # of the noise

        def down(x: Tensor, t: Level, s: Level) -> tuple[Tensor, Estimate]:
            """Draw x_s from q(x_s | x_t, x_0) with the estimate of x_0."""
            estimate = denoise(x, t)
            q = t.alpha * s.sigma / (s.alpha * t.sigma)
            mean = s.alpha * (1 - q**2) * estimate.x_0 + q * s.sigma / t.sigma * x
            return mean + s.sigma * math.sqrt(1 - q**2) * noise(next(number)), estimate

        def up(x: Tensor, s: Level, t: Level) -> Tensor:
            """Draw x_t from q(x_t | x_s)."""
            a = t.alpha / s.alpha
            return a * x + math.sqrt(t.sigma**2 - (a * s.sigma) ** 2) * noise(next(number))

        for i, (t, s) in enumerate(pairwise(levels), start=1):
            x, estimate = down(x, t, s)
            if i > self.jump and (len(levels) - 1 - i) % self.jump == 0:
                window = levels[i - self.jump : i + 1]
                for _ in range(self.resamplings - 1):
                    x = up(x, s, window[0])
                    for higher, lower in pairwise(window):
                        x, estimate = down(x, higher, lower)
            yield Step(x, s, estimate)
