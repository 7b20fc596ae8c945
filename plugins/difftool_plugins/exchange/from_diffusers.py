"""A folder of diffusers as a model: its network, its schedule, and the facts about its data."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difftool import DifftoolError, Model, component, model_of, printable
from difftool_plugins.exchange.schedulers import PREDICTIONS, betas_of, table_of
from difftool_plugins.exchange.to_diffusers import FOLDERS, RECORD

BACKBONES = {
    "UNet2DModel": "diffusers-unet",
    "DiTTransformer2DModel": "diffusers-dit",
    "Transformer2DModel": "diffusers-dit",
}
"""The backbones by the classes of diffusers. The oldest DiT has the name of a more general class."""
FREE = (
    *("sample_size", "in_channels", "out_channels", "num_class_embeds", "num_embeds_ada_norm"),
    *("upcast_attention", "num_train_timesteps", "dropout"),
)
"""Entries of a configuration that follow from the data, or change no output."""
SCHEDULERS = (
    *("DDPM", "DDIM", "PNDM", "DPMSolver", "UniPC", "DEIS"),
    *("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"),
)
"""Words in the names of schedulers whose networks difftool can sample."""
CLIPPING = ("DDPM", "DDIM")
"""Words in the names of schedulers that clip by default."""
LARGEST_CONFIG = 2**26
"""The size in bytes up to which a configuration is read."""
STD = 0.5
"""The standard deviation of ordinary images in model units; that of the training data is not recorded."""
WEIGHTS = "diffusion_pytorch_model"


def read_folder(path: Path, *, size: tuple[int, ...] | None = None) -> Model:
    """Return the model in a folder that diffusers wrote. Raises `DifftoolError`."""
    try:
        return _read(path, size)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DifftoolError(f"{printable(str(path))}: {reason}") from None


def _read(path: Path, size: tuple[int, ...] | None) -> Model:
    part = network_folder(path)
    config = _json(part / "config.json")
    name = config.get("_class_name")
    if name not in BACKBONES:
        raise ValueError(f"its network is {printable(repr(name))}, not {' or '.join(FOLDERS)}")
    scheduler = scheduler_of(path)
    own = _record(path, scheduler)
    original, tensors = load(part, "UNet2DModel" if name == "UNet2DModel" else "DiTTransformer2DModel")
    check_supported(original, BACKBONES[name])
    tables, data = own or described(config, scheduler, size, tensors)
    if own is None and name == "UNet2DModel" and (rows := tensors.get("model.class_embedding.weight")) is not None:
        tensors["model.class_embedding.weight"] = torch.cat([rows, torch.zeros_like(rows[:1])])  # none: nothing added
    model = model_of(tables, data, tensors)
    built: Any = model.network.model
    for key, value in original.config.items():
        here = built.config.get(key)
        if not key.startswith("_") and key not in FREE and _plain(here) != _plain(value):
            raise ValueError(f"its network has {key} {value!r:.60}, which difftool does not support")
    return model


def check_supported(network: Any, backbone: str) -> None:
    """Raise `ValueError` for an entry of a configuration that the backbone has no option for."""
    options = inspect.signature(type(component("backbone", backbone))).parameters
    for key, parameter in inspect.signature(type(network)).parameters.items():
        value = network.config.get(key)
        if key not in options and key not in FREE and _plain(value) != _plain(parameter.default):
            raise ValueError(f"its network has {key} {value!r:.60}, which difftool does not support")


def network_folder(path: Path) -> Path:
    """Return the folder of the network in a pipeline's folder, or the folder itself. Raises `ValueError`."""
    if not path.is_dir():
        raise ValueError("there is no such folder" if not path.exists() else "is not a folder of diffusers")
    for folder in (*(path / name for name in FOLDERS.values()), path):
        if (folder / "config.json").is_file():
            break
    else:
        raise ValueError(
            f"it has no network of diffusers ({' or '.join(f'{f}/config.json' for f in FOLDERS.values())})"
        )
    if not (folder / f"{WEIGHTS}.safetensors").is_file():
        if any(folder.glob("*.bin")):
            raise ValueError("its .bin may run code, so it is never opened; save it with safe_serialization=True")
        raise ValueError(f"it has no {WEIGHTS}.safetensors in {printable(folder.name)}")
    return folder


def scheduler_of(path: Path) -> dict[str, Any]:
    """Return the configuration of the scheduler in a pipeline's folder. Raises `ValueError`."""
    for file in (path / "scheduler" / "scheduler_config.json", path.parent / "scheduler" / "scheduler_config.json"):
        if file.is_file():
            config = _json(file)
            name = str(config.get("_class_name"))
            if not any(word in name for word in SCHEDULERS):
                raise ValueError(f"its scheduler {printable(name)} is none of difftool's kind, such as DDPMScheduler")
            if "FlowMatch" in name or config.get("use_flow_sigmas"):
                raise ValueError(f"its scheduler {printable(name)} is of flow matching, which cannot be imported")
            return config
    raise ValueError("it has no scheduler/scheduler_config.json, so its noise schedule is not known")


def _json(file: Path) -> dict[str, Any]:
    """Return the object in a configuration. Infinity, which diffusers writes and no JSON has, becomes None."""
    try:
        if file.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG >> 20} MiB")
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} cannot be read ({printable(str(error))[:200]})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return config


def bounds_of(scheduler: Mapping[str, Any]) -> list[float] | None:
    """Return the bounds to which a scheduler clips x_0, or None if it does not. Raises `ValueError`.

    It warns of dynamic thresholding, which is a setting of sampling here.
    """
    if scheduler.get("thresholding"):
        quantile = scheduler.get("dynamic_thresholding_ratio", 0.995)
        warnings.warn(f"its scheduler thresholds x_0; sample with --threshold {quantile!r:.20}", stacklevel=2)
    name = str(scheduler.get("_class_name"))
    if not scheduler.get("clip_sample", any(word in name for word in CLIPPING)):
        return None
    most = scheduler.get("clip_sample_range", 1.0)
    if isinstance(most, bool) or not isinstance(most, (int, float)) or not 0 < most < 1e6:
        raise ValueError(f"clip_sample_range must be a number above 0, not {most!r:.40}")
    return [-float(most), float(most)]


def described(
    config: Mapping[str, Any], scheduler: Mapping[str, Any], size: tuple[int, ...] | None, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the tables of a config file, and the facts about the data, of two configurations. Raises `ValueError`."""
    backbone = BACKBONES[config["_class_name"]]
    cls = type(component("backbone", backbone))
    names = set(inspect.signature(cls).parameters)
    options = {key: value for key, value in config.items() if key in names and value is not None}
    if backbone == "diffusers-unet" and config.get("attention_head_dim", 8) is None:
        options["attention_head_dim"] = 0
    defaults = {"attention_head_dim": 72, "num_attention_heads": 16, "num_layers": 28}
    if backbone == "diffusers-unet":
        defaults = {"attention_head_dim": 8, "layers_per_block": 2, "norm_num_groups": 32}
    T = len(betas_of(scheduler))
    channels = config.get("in_channels", 3 if backbone == "diffusers-unet" else 4)
    out = config.get("out_channels") or channels
    side = size or config.get("sample_size")
    sides = (side, side) if isinstance(side, int) else tuple(side or ())
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in sides):
        raise ValueError("its configuration has no usable sample_size; give --size")
    if type(channels) is not int or out not in (channels, 2 * channels):
        raise ValueError(f"it takes {channels!r:.20} channels and gives {out!r:.20}, so it is no denoiser of images")
    prediction = scheduler.get("prediction_type", "epsilon")
    by_name = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    if prediction not in by_name:
        raise ValueError(f"its prediction_type is {prediction!r:.40}, not one of {', '.join(by_name)}")
    table = tensors.get("model.class_embedding.weight")
    classes = 0 if table is None else len(table)
    if backbone == "diffusers-dit":
        count = config.get("num_embeds_ada_norm", 1000)
        classes = count if count != 1 else 0
    unconditional = {"condition_dropout": 0.0} if backbone == "diffusers-unet" and classes else {}
    data = {
        "shape": [channels, *sides],
        "shift": [127.5],
        "scale": [127.5],
        "bounds": bounds_of(scheduler),
        "class_names": [str(k) for k in range(classes)],
        "std": STD,
        "form": "image" if channels in (1, 3) else "array",
    }
    if data["form"] == "array":
        data |= {"shift": [0.0], "scale": [1.0], "bounds": None, "std": 1.0}
    tables = {
        "schedule": table_of(scheduler),
        "backbone": {**defaults, **options, "name": backbone, "times": T},
        "prediction": {"name": by_name[prediction]},
        "training": {"timesteps": T, "learn_variance": out == 2 * channels, **unconditional},
    }
    return tables, data


def load(folder: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the network of a folder and its state by the names here. Raises `ValueError`."""
    import diffusers

    try:
        with torch.random.fork_rng(devices=()):
            network, info = getattr(diffusers, name).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
            )
    except Exception as error:
        text = printable(" ".join(str(error).split()))
        raise ValueError(f"its network cannot be loaded ({type(error).__name__}: {text[:300]})") from None
    if info["missing_keys"] or info["unexpected_keys"]:
        key = sorted([*info["missing_keys"], *info["unexpected_keys"]])[0]
        raise ValueError(f"its weights do not fit its configuration: {printable(key)}")
    return network, {f"model.{key}": tensor.float() for key, tensor in network.state_dict().items()}


def _record(path: Path, scheduler: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the tables and facts that difftool wrote into a folder, if the folder still has that schedule."""
    if not (path / RECORD).is_file():
        return None
    record = _json(path / RECORD)
    names: tuple[str, ...] = ("schedule", "backbone", "prediction", "training")
    tables = {name: record[name] for name in names if name in record}
    data: Any = record.get("data")
    if len(tables) < len(names) or not all(isinstance(table, dict) for table in (data, *tables.values())):
        raise ValueError(f"{RECORD} lacks what difftool wrote into it; remove it to import the rest")
    options: dict[str, Any] = {**tables["schedule"]}
    schedule: Any = component("schedule", str(options.pop("name", "")), **options)
    T = tables["training"].get("timesteps")
    betas = schedule.build(T).betas if type(T) is int and 1 <= T <= 100_000 else torch.zeros(0)
    theirs = betas_of(scheduler)
    same = len(betas) == len(theirs) and torch.allclose(betas, theirs, rtol=1e-5, atol=1e-8)
    if not same or scheduler.get("prediction_type") != PREDICTIONS.get(str(tables["prediction"].get("name"))):
        raise ValueError(f"{RECORD} describes another noise schedule than its scheduler; remove it to import the rest")
    return tables, data


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
