"""Draw samples from the model in this folder, by DDIM (Song, Meng & Ermon, 2021, eq. 12), without difftool.

A network predicts a x_0 + b eps of x_t = alpha x_0 + sigma eps. `model.json` has these numbers for each noise level,
from clean to noisy.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from network import run

Arrays = Mapping[str, np.ndarray]
MODEL: dict[str, Any] = json.loads((Path(__file__).parent / "model.json").read_text(encoding="utf-8"))
LEVELS: dict[str, list[float]] = MODEL["levels"]
T = len(LEVELS["alpha"])
SELF_COND_RANGE = 4.0
"""Estimates of unbounded data are clipped to so many deviations before a network sees them again."""


class Denoiser:
    """The estimate of x_0 from x_t at level t, under one condition."""

    def __init__(self, cond: Arrays) -> None:
        self.cond = cond
        self.last: np.ndarray | None = None

    def __call__(self, x: np.ndarray, t: int) -> np.ndarray:
        alpha, sigma, time, scale, a, b = (
            LEVELS[name][t] for name in ("alpha", "sigma", "time", "input_scale", "a", "b")
        )
        inputs = {"x": scale * x, "t": np.full(len(x), time, np.float32)}
        if MODEL["self_condition"]:
            inputs["x_self_cond"] = np.zeros_like(x) if self.last is None else self.last
        output = run("network", {**inputs, **self.cond})
        determinant = alpha * b - sigma * a
        x_0: np.ndarray = (b / determinant) * x - (sigma / determinant) * output
        most = SELF_COND_RANGE * MODEL["sigma_data"]
        self.last = x_0.clip(*(MODEL["bounds"] or (-most, most)))
        return x_0


def sample(x: np.ndarray, steps: int, cond: Arrays, guidance: float = 1.0) -> np.ndarray:
    """Return samples in model units that begin at the noise x, of deviation 1, in so many steps of even spacing.

    A guidance other than 1 is the scale w of u + w (c - u), from the estimates c and u with and without the condition.
    """
    alpha, sigma = LEVELS["alpha"], LEVELS["sigma"]
    chosen = [round(T * (steps - i) / steps) - 1 for i in range(steps)]
    denoise = Denoiser(cond)
    without = Denoiser({**{name: 0 * rows for name, rows in cond.items()}, "hidden": np.full(len(x), True)})
    x = float(np.hypot(alpha[chosen[0]], sigma[chosen[0]])) * x.astype(np.float32)
    for i, t in enumerate(chosen):
        x_0 = denoise(x, t)
        if guidance != 1.0:
            u = without(x, t)
            x_0 = u + guidance * (x_0 - u)
        if MODEL["bounds"]:
            x_0 = x_0.clip(*MODEL["bounds"])
        eps = (x - alpha[t] * x_0) / sigma[t]
        x = x_0 if i + 1 == steps else alpha[chosen[i + 1]] * x_0 + sigma[chosen[i + 1]] * eps
    return x


def in_data_units(x: np.ndarray) -> np.ndarray:
    """Return samples in the units of the data: uint8 pixels for images and films, and other numbers as floats."""
    if MODEL["codec"] != "none":
        x = run("decoder", {"z": x})
        if MODEL["data_bounds"]:
            x = x.clip(*MODEL["data_bounds"])
    axes = (-1,) + (1,) * (x.ndim - 2)
    x = x * np.reshape(MODEL["data"]["scale"], axes) + np.reshape(MODEL["data"]["shift"], axes)
    return x.round().clip(0, 255).astype(np.uint8) if MODEL["data"]["form"] in ("image", "film") else x


def read_label(text: str) -> np.ndarray:
    """Return the indices of classes, given by their names and joined by commas."""
    names = MODEL["class_names"]
    words = [text] if text in names else text.split(",")
    if unknown := [word for word in words if word not in names]:
        raise ValueError(f"there is no class {unknown[0]!r}; there are {', '.join(names[:20])}")
    return np.array([names.index(word) for word in words])


def read_vector(text: str) -> np.ndarray:
    """Return vectors in the units of the network, from numbers joined by commas or a .npy file of them."""
    rows: Any = np.load(text) if text.endswith(".npy") else np.array(text.split(","), np.float64)
    shift, scale = (np.array(MODEL["vector"][name]) for name in ("shift", "scale"))
    return np.asarray((rows.reshape(-1, rows.shape[-1]) - shift) / scale)


def read_image(text: str) -> np.ndarray:
    """Return condition images from a .npy file of uint8 pixels, or of floats in the units of the network."""
    rows = read_tokens(text, axes=4)
    return np.asarray(rows / 127.5 - 1.0) if rows.dtype == np.uint8 else rows


def read_tokens(text: str, axes: int = 3) -> np.ndarray:
    """Return the rows of a .npy file, which is one row if it lacks an axis."""
    rows: np.ndarray = np.load(text)
    return rows if rows.ndim == axes else rows[None]


READERS: dict[str, Any] = {"label": read_label, "vector": read_vector, "image": read_image, "tokens": read_tokens}


def conditions(n: int, texts: Mapping[str, str | None]) -> dict[str, np.ndarray]:
    """Return the conditions of n samples, which take the given rows in turn; hidden ones if none is given.

    Raises `ValueError`.
    """
    shapes, texts = MODEL["conditions"], {name: text for name, text in texts.items() if text is not None}
    if others := [name for name in texts if name not in shapes]:
        raise ValueError(f"--{others[0]}: the model takes {', '.join(shapes) or 'no condition'}")
    missing = [name for name in shapes if name not in texts]
    if missing and (texts or not MODEL["unconditional"]):
        raise ValueError(f"--{missing[0]}: the model needs it")
    cond = {"hidden": np.full(n, not texts)} if shapes else {}
    for name, shape in shapes.items():
        kind = np.int64 if name == "label" else np.float32
        try:
            rows = READERS[name](texts[name]) if texts else np.zeros((1, *shape))
        except ValueError as error:
            raise ValueError(f"--{name}: {error}") from None
        if list(rows.shape[1:]) != shape:
            raise ValueError(f"--{name}: must have the shape {tuple(shape)}, not {rows.shape[1:]}")
        cond[name] = rows[np.arange(n) % len(rows)].astype(kind)
    return cond


def main() -> None:
    """Read the command line, and write the samples."""
    parser = argparse.ArgumentParser(description="Draw samples from the model in this folder.")
    parser.add_argument("-n", type=int, default=16, help="number of samples")
    parser.add_argument("--steps", type=int, default=min(50, T), help=f"up to {T}")
    parser.add_argument("--seed", type=int, default=0)
    for name in MODEL["conditions"]:
        parser.add_argument(f"--{name}", help="class, or several joined by commas" if name == "label" else ".npy file")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale of classifier-free guidance; 1: off")
    parser.add_argument("--out", default="samples.npy", help="file of the samples, in the units of the data")
    options = parser.parse_args()
    if options.n < 1 or not 1 <= options.steps <= T:
        parser.error(f"-n must be at least 1, and --steps from 1 to {T}")
    try:
        cond = conditions(options.n, {name: getattr(options, name) for name in MODEL["conditions"]})
        if options.guidance != 1.0 and (not MODEL["unconditional"] or cond["hidden"].any()):
            raise ValueError("--guidance: needs a condition, and a model that was trained without it too")
        eps = np.random.default_rng(options.seed).standard_normal((options.n, *MODEL["shape"]))
        samples = in_data_units(sample(eps, options.steps, cond, options.guidance))
        np.save(options.out, samples)
    except (OSError, ValueError) as error:
        parser.exit(1, f"sample.py: {error}\n")
    print(f"{options.out}: {samples.shape}")


if __name__ == "__main__":
    main()
