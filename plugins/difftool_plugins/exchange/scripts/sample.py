"""Draw samples from the model in this folder, by DDIM (Song, Meng & Ermon, 2021), without difftool.

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

MODEL: dict[str, Any] = json.loads((Path(__file__).parent / "model.json").read_text(encoding="utf-8"))
LEVELS = {name: np.array(values) for name, values in MODEL["levels"].items()}


def denoise(x: np.ndarray, t: int, cond: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the estimates of x_0 and eps in x at level t, with x_0 clipped to the bounds of the data."""
    alpha, sigma, time, scale, a, b = (LEVELS[name][t] for name in ("alpha", "sigma", "time", "input_scale", "a", "b"))
    times = np.full(len(x), time, np.float32)
    output = run("network", {"x": (scale * x).astype(np.float32), "t": times, **cond}).astype(np.float64)
    x_0 = (b * x - sigma * output) / (alpha * b - sigma * a)
    if MODEL["bounds"]:
        x_0 = x_0.clip(*MODEL["bounds"])
    return x_0, (x - alpha * x_0) / sigma


def sample(x: np.ndarray, steps: int, cond: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return samples in model units that begin at the noise x, in so many steps of even spacing."""
    T = len(LEVELS["alpha"])
    chosen = [round(T * (steps - i) / steps) - 1 for i in range(steps)]
    x = x * np.hypot(LEVELS["alpha"][chosen[0]], LEVELS["sigma"][chosen[0]])
    for i, t in enumerate(chosen):
        x_0, eps = denoise(x, t, cond)
        last = i + 1 == steps
        x = x_0 if last else LEVELS["alpha"][chosen[i + 1]] * x_0 + LEVELS["sigma"][chosen[i + 1]] * eps
    return x


def in_data_units(x: np.ndarray) -> np.ndarray:
    """Return samples in the units of the data: pixels from 0 to 255 for images."""
    if MODEL["codec"] != "none":
        x = run("decoder", {"z": x.astype(np.float32)})
        if MODEL["data_bounds"]:
            x = x.clip(*MODEL["data_bounds"])
    axes = (-1,) + (1,) * (x.ndim - 2)
    return x * np.reshape(MODEL["data"]["scale"], axes) + np.reshape(MODEL["data"]["shift"], axes)


def conditions(n: int, label: str | None, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return the conditions of n samples; hidden, which draws samples of all kinds, if none is given.

    Files hold a row for each sample, or rows to be repeated, in the units of the network.
    """
    shapes = MODEL["conditions"]
    if not shapes:
        return {}
    types = {"label": np.int64}
    cond = {name: np.zeros((n, *shape), types.get(name, np.float32)) for name, shape in shapes.items()}
    given = dict.fromkeys(files)
    for name, file in files.items():
        rows = np.load(file)
        cond[name][:] = rows[np.arange(n) % len(rows)]
    if label is not None:
        given["label"] = None
        cond["label"][:] = MODEL["class_names"].index(label)
    if given and given.keys() != shapes.keys():
        raise SystemExit(f"the model needs all of its conditions: {', '.join(shapes)}")
    return {**cond, "hidden": np.full(n, not given)}


def main() -> None:
    """Read the command line, and write the samples."""
    parser = argparse.ArgumentParser(description="Draw samples from the model in this folder.")
    parser.add_argument("-n", type=int, default=16, help="number of samples")
    parser.add_argument("--steps", type=int, default=50, help=f"up to {len(LEVELS['alpha'])}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", choices=MODEL["class_names"] or None, help="class")
    parser.add_argument(
        "--condition", action="append", default=[], metavar="NAME=FILE.npy", help=", ".join(MODEL["conditions"])
    )
    parser.add_argument("--out", default="samples.npy", help="file of the samples, in the units of the data")
    options = parser.parse_args()
    files = dict(text.split("=", 1) for text in options.condition)
    x = np.random.default_rng(options.seed).standard_normal((options.n, *MODEL["shape"]))
    samples = in_data_units(sample(x, options.steps, conditions(options.n, options.label, files)))
    if MODEL["data"]["form"] == "image":
        samples = samples.round().clip(0, 255).astype(np.uint8)
    np.save(options.out, samples)
    print(f"{options.out}: {samples.shape}")


if __name__ == "__main__":
    main()
