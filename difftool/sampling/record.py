"""The record of how samples were made, which the files of samples carry: JSON without a time, a host or a path.

A record is a text of strangers when it is read. It names components, numbers and digests, opens nothing and runs
nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from difftool import devices
from difftool.data.own_images import image_files
from difftool.data.samples import fingerprint
from difftool.errors import BadFile, printable
from difftool.files import parse_json
from difftool.options import plain
from difftool.paths import without_paths
from difftool.plugins.registry import registry
from difftool.runs import states
from difftool.runs.recipe import plugins_of
from difftool.sampling.beside import sha256_of
from difftool.sampling.embedded import FOUND_IN_FOLDERS, text_in
from difftool.sampling.model import Model
from difftool.sampling.oracle import OracleSource
from difftool.sampling.plan import all_steps
from difftool.version import __version__

if TYPE_CHECKING:
    from difftool.components import Component, Writer
    from difftool.sampling.checkpoints import Checkpoint
    from difftool.sampling.plan import Plan
    from difftool.sampling.source import Source
    from difftool.settings import Sampling

FORMAT = 1
LARGEST = 60_000
"""The size in bytes from which on a record is left out: formats such as GIF and zip have room for no more."""
LARGEST_TIMESTEPS = 100_000
INPUTS = ("init", "inpaint", "mask", "image", "vector", "tokens")
"""The settings of sampling that name files."""
DRAWING = ("pillow", "matplotlib")
"""The libraries that draw pictures."""
LIBRARIES = ("torch", "numpy", *DRAWING)
"""The libraries whose versions may change the bytes of a file."""
NUMBERS = re.compile(r"[-+\d.eE, ]{1,10000}", re.ASCII)
"""A vector that is given as numbers, and not by a file."""
NAME = re.compile(r"[\w.:+-]{1,120}")
DIGEST = re.compile(r"[0-9a-f]{64}")

Table = Mapping[str, Any]
"""A component as plain values: its name and its options."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of how samples were made."""

    model: Table | None = None
    """The name, digest, weights and step of a trained model; None for an oracle."""
    oracle: Table | None = None
    """The oracle, as tables of its parts: oracle, dataset and schedule, with timesteps and the data's fingerprint."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """The digests of the checkpoints by their names, if `--checkpoints` named some."""
    sampler: Sequence[Table]
    spacing: Sequence[Table]
    guidance: Sequence[Table] = ()
    guides: Sequence[Table] = ()
    """The other models that guidances used, as `model`."""
    settings: Mapping[str, Any]
    """The settings of sampling but for those that name files."""
    inputs: Mapping[str, Table] = field(default_factory=dict)
    """The name and digest of each file that was given, by setting."""
    display: Mapping[str, Any] = field(default_factory=dict)
    """The settings of pictures and arrays, and whether data were drawn under the samples."""
    writer: Table | None = None
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    plugins: Mapping[str, str] = field(default_factory=dict)
    """The packages of the components with their versions, and scripts with their digests."""
    index: int | None = None
    """The number of the sample, in a file of one sample alone."""

    def document(self) -> dict[str, Any]:
        """Return the record as plain values. What is empty is left out."""
        return {"format": FORMAT, **{name: value for name, value in asdict(self).items() if value or value == 0}}

    def text(self) -> str:
        """Return the record as JSON in ASCII, or an empty text if it is too long for the place that formats have."""
        text = json.dumps(self.document(), allow_nan=False)
        return text if len(text) <= LARGEST else ""

    def of_file(self, writer: Writer, display: Mapping[str, Any]) -> Record:
        """Return the record of a file of this writer, which shows the samples in this way."""
        used = {name: v for name, v in self.versions.items() if name not in DRAWING or not writer.holds_arrays}
        plugins = dict(sorted({**self.plugins, **plugins_of([writer])}.items()))
        return replace(self, writer=table_of(writer), display=display, plugins=plugins, versions=used)

    @classmethod
    def read(cls, document: object) -> Record:
        """Return the record of a stranger's document. Raises `ValueError` if it is malformed."""
        if not isinstance(document, dict) or type(version := document.get("format")) is not int or version < 1:
            raise ValueError("it has no format")
        if version > FORMAT:
            raise ValueError(f"it was written by a newer difftool (format {version}); upgrade difftool")
        for name, (check, required) in SHAPES.items():
            value = document.get(name)
            if (value is None and required) or (value is not None and not check(value)):
                raise ValueError(f"its {name} is {'missing' if value is None else 'malformed'}")
        if (document.get("model") is None) == (document.get("oracle") is None):
            raise ValueError("it names neither a model nor an oracle, or both")
        return cls(**{name: document[name] for name in SHAPES if document.get(name) is not None})


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) and len(text) <= 200 for text in value.values())


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and isinstance(name := value.get("name"), str) and bool(NAME.fullmatch(name))


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_table, value))


def _is_model(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    texts = (value.get(name) for name in ("name", "weights"))
    digest, step, length = (value.get(name) for name in ("digest", "step", "ema_length"))
    return (
        all(isinstance(text, str) and 0 < len(text) <= 200 for text in texts)
        and (isinstance(digest, str) and DIGEST.fullmatch(digest) is not None)
        and (type(step) is int and step >= 0)
        and (length is None or type(length) is float)
    )


def _is_oracle(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_table(value.get(kind)) for kind in ("oracle", "dataset", "schedule"))
        and type(timesteps := value.get("timesteps")) is int
        and 1 <= timesteps <= LARGEST_TIMESTEPS
        and isinstance(value.get("data"), str)
    )


def _is_settings(value: object) -> bool:
    """Return whether settings name no file, as a vector of another text than numbers could."""
    if not isinstance(value, dict) or any(name in value for name in INPUTS if name != "vector"):
        return False
    vector = value.get("vector", "0")
    return isinstance(vector, str) and NUMBERS.fullmatch(vector) is not None


def _is_inputs(value: object) -> bool:
    return isinstance(value, dict) and all(
        name in INPUTS
        and isinstance(one, dict)
        and isinstance(one.get("name", ""), str)
        and isinstance(digest := one.get("sha256"), str)
        and bool(DIGEST.fullmatch(digest))
        for name, one in value.items()
    )


SHAPES = {
    "model": (_is_model, False),
    "oracle": (_is_oracle, False),
    "checkpoints": (lambda value: _is_texts(value) and all(map(DIGEST.fullmatch, value.values())), False),
    "sampler": (_is_tables, True),
    "spacing": (_is_tables, True),
    "guidance": (_is_tables, False),
    "guides": (lambda value: isinstance(value, list) and all(map(_is_model, value)), False),
    "settings": (_is_settings, True),
    "inputs": (_is_inputs, False),
    "display": (lambda value: isinstance(value, dict), False),
    "writer": (_is_table, False),
    "machine": (lambda value: isinstance(value, dict), True),
    "versions": (_is_texts, True),
    "plugins": (_is_texts, False),
    "index": (lambda value: type(value) is int and value >= 0, False),
}
"""The check of each entry of a document, and whether it has to be there."""


class NoRecord(BadFile):
    """A file carries no record."""


def samples_in(folder: Path) -> list[Path]:
    """Return the files of a folder that can be samples with a record, by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in FOUND_IN_FOLDERS and p.name[0] != ".")


def read_record(path: Path) -> Record:
    """Return the record of a file of samples, or of a folder of them. Raises `BadFile`."""
    file, shown = path, printable(str(path))
    if path.is_dir():
        files = samples_in(path)
        if not files:
            raise NoRecord(f"{shown} is a folder without samples that carry a record")
        file, shown = files[0], printable(str(files[0]))
    if (text := text_in(file)) is None:
        raise NoRecord(f"{shown} carries no record of how it was made")
    try:
        record = Record.read(parse_json(text))
    except ValueError as error:
        raise BadFile(f"{shown}: its record is malformed: {printable(str(error))[:200]}") from None
    return replace(record, index=None) if path.is_dir() else record


def table_of(component: Component) -> dict[str, Any]:
    """Return a component as plain values, without the paths of this machine."""
    return {"name": registry().reference(type(component)), **without_paths(type(component), plain(component))}


def record_of(
    source: Source,
    plans: Sequence[Plan],
    *,
    checkpoints: Iterable[Checkpoint] = (),
    ema_length: float | None = None,
) -> Record:
    """Return the record of samples that plans draw from a source, in the threads that torch now has.

    Raises `OSError` for a file that has gone.
    """
    plan, components = plans[0], [part for each in plans for part in (each.sampler, each.spacing, each.guidance)]
    settings = {**settings_of(plans, source), "num_samples": plan.num_samples, "batch_size": plan.batch_size}
    if source.device.type == "cpu":
        settings["threads"] = torch.get_num_threads()
    if isinstance(source, Model):
        made_of = [part for part in source.recipe.parts.values() if part.needed_to_sample]
        about: dict[str, Any] = {"model": model_table(source, ema_length)}
    else:
        assert isinstance(source, OracleSource)
        made_of = [source.oracle, source.dataset, source.noise]
        tables = {part.kind: table_of(part) for part in made_of}
        about = {"oracle": {**tables, "timesteps": len(source.schedule), "data": fingerprint(source.samples)}}
    return Record(
        **about,
        checkpoints={one.name: states.load_digest(one.path) for one in checkpoints},
        sampler=_tables(each.sampler for each in plans),
        spacing=_tables(each.spacing for each in plans),
        guidance=_tables(each.guidance for each in plans if each.guidance is not None),
        guides=[model_table(other) for other in source._others.values() if isinstance(other, Model)],
        settings=dict(sorted(settings.items())),
        inputs=inputs_of(plan.settings),
        machine=machine_of(source.device),
        versions=versions(),
        plugins=dict(sorted(plugins_of([*made_of, *filter(None, components)]).items())),
    )


def model_table(model: Model, ema_length: float | None = None) -> dict[str, Any]:
    """Return what a record says of a trained model."""
    table = {"name": model.name, "digest": model.digest, "weights": model.weights, "step": model.step}
    return table if ema_length is None else {**table, "ema_length": float(ema_length)}


def machine_of(device: torch.device) -> dict[str, str | int]:
    """Return the facts of a machine that the last digits of samples depend on."""
    facts = devices.machine(device)
    if device.type == "cpu":
        facts["cpu"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {name: value for name, value in facts.items() if name not in ("torch", "threads")}


def _tables(components: Iterable[Component]) -> list[dict[str, Any]]:
    """Return the tables of components, each once."""
    return [table_of(component) for component in dict.fromkeys(components)]


def settings_of(plans: Sequence[Plan], source: Source) -> dict[str, Any]:
    """Return the settings of plans as plain values, without those that name files; a vector of numbers names none.

    Steps and seeds are lists of their different values. Steps that differ because samplers differ are left out.
    """
    settings = plans[0].settings
    values = {name: value for name, value in plain(settings).items() if name not in (*INPUTS, "steps", "seed")}
    if settings.vector is not None and NUMBERS.fullmatch(settings.vector):
        values["vector"] = settings.vector
    steps = list(dict.fromkeys(all_steps(source.schedule, each.settings, each.sampler) for each in plans))
    if settings.steps is not None or len(steps) == 1:
        values["steps"] = steps
    if settings.interpolate is None:
        values["seed"] = list(dict.fromkeys(each.seed for each in plans))
    return values


def inputs_of(settings: Sampling) -> dict[str, Table]:
    """Return the name and the digest of each file that settings name, and of other texts the digest alone.

    Raises `OSError`.
    """
    found: dict[str, Table] = {}
    for name in INPUTS:
        value = getattr(settings, name)
        if value is not None and not (name == "vector" and NUMBERS.fullmatch(value)):
            found[name] = input_of(value)
    return found


def input_of(value: Path | str) -> dict[str, str]:
    """Return the name and the digest of a file or a folder of images, or the digest of another text."""
    path = Path(value)
    if path.is_dir():
        files = [(sha256_of(file), file.name) for file in image_files(path)]
        return {"name": path.name, "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
    if path.is_file():
        return {"name": path.name, "sha256": sha256_of(path)}
    return {"sha256": hashlib.sha256(str(value).encode("utf-8", "surrogateescape")).hexdigest()}


def versions() -> dict[str, str]:
    """Return the versions of difftool and of the libraries that make files."""
    return {"difftool": __version__, **{name: metadata.version(name) for name in LIBRARIES}}
