"""Noise schedules as schedulers of diffusers describe them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from difftool import Schedule

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
"""The predictions of diffusers by their names here."""
EQUAL = 1e-6
"""Betas that differ by less are the same: diffusers computes in float32."""
MOST_LEVELS = 100_000
NAMES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
"""The schedules of difftool by the names of diffusers."""


def betas_of(config: Mapping[str, Any]) -> Tensor:
    """Return the betas (T,) of a scheduler's configuration, float64. Raises `ValueError`."""
    T, trained = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    if type(T) is not int or not 1 <= T <= MOST_LEVELS:
        raise ValueError(f"num_train_timesteps must be a whole number up to {MOST_LEVELS:,}, not {T!r:.40}")
    if trained is not None:
        if not isinstance(trained, list) or not all(_is_beta(beta) for beta in trained):
            raise ValueError("trained_betas must be a list of numbers from 0 to 1")
        if len(trained) != T:
            raise ValueError(f"trained_betas has {len(trained)} entries for {T} time steps")
        betas = torch.tensor(trained, dtype=torch.float64)
    else:
        name = config.get("beta_schedule", "linear")
        first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if name not in NAMES:
            raise ValueError(f"beta_schedule must be one of {', '.join(NAMES)}, not {name!r:.40}")
        if not (_is_beta(first) and _is_beta(last) and 0 < first < last < 1):
            raise ValueError(f"beta_start and beta_end must rise between 0 and 1, not {first!r:.20} and {last!r:.20}")
        betas = named(name, float(first), float(last), T)
    if config.get("rescale_betas_zero_snr"):
        root = (1 - betas).cumprod(0).sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
        betas = 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    return betas


def named(name: str, first: float, last: float, T: int) -> Tensor:
    """Return the betas (T,) of a schedule of diffusers."""
    if name == "linear":
        return torch.linspace(first, last, T, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64).square()
    if name == "sigmoid":
        return torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (last - first) + first
    u = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = ((u + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def _is_beta(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def table_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schedule of a scheduler's configuration as difftool records one. Raises `ValueError`."""
    betas = betas_of(config)
    name = config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        found = recognised(betas)
        if found is None:
            raise ValueError(
                "trained_betas are of none of the schedules linear, scaled-linear and cosine; difftool has no schedule "
                "that holds a table"
            )
        name, first, last = found
    zero_snr = {"zero_snr": bool(config.get("rescale_betas_zero_snr"))}
    if name == "squaredcos_cap_v2":
        return {"name": NAMES[name], **zero_snr}
    return {"name": NAMES[name], "beta_min": float(first), "beta_max": float(last), "rescale": False, **zero_snr}


def recognised(betas: Tensor) -> tuple[str, float, float] | None:
    """Return the name, first and last beta of the schedule of diffusers that has these betas (T,), or None."""
    first, last = float(betas[0]), float(betas[-1])
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        if torch.allclose(named(name, first, last, len(betas)), betas, rtol=EQUAL, atol=1e-9):
            return name, first, last
    return None


def scheduler_config(schedule: Schedule, prediction: str, bounds: Sequence[float] | None) -> dict[str, Any]:
    """Return the configuration of the `DDIMScheduler` that samples as difftool does. Raises `ValueError`."""
    if not schedule.variance_preserving:
        raise ValueError("the schedule does not preserve variance, and the schedulers of these pipelines all do")
    if prediction not in PREDICTIONS:
        raise ValueError(f"the prediction is {prediction}, and diffusers has {', '.join(PREDICTIONS)} alone")
    betas = schedule.betas
    known = recognised(betas)
    name, first, last = known or ("linear", 1e-4, 0.02)
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": len(schedule),
        "beta_schedule": name,
        "beta_start": first if name != "squaredcos_cap_v2" else 1e-4,
        "beta_end": last if name != "squaredcos_cap_v2" else 0.02,
        "trained_betas": None if known else betas.tolist(),
        "clip_sample": bounds is not None and -bounds[0] == bounds[1],
        "clip_sample_range": bounds[1] if bounds is not None and -bounds[0] == bounds[1] else 1.0,
        "prediction_type": PREDICTIONS[prediction],
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": False,
    }
