"""A recipe: which components, with which options, trained how. All that a run is, as plain values.

The same document is a run's `config.toml` and the metadata of its weights. It holds names and plain values, never an
import path; names are looked up in the register, values pass through the components' own validation.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from difftool.components import (
    Backbone,
    Component,
    Dataset,
    NoiseSchedule,
    Prediction,
    TimeDensity,
    Weighting,
)
from difftool.errors import (
    BadFile,
    InvalidOption,
    PluginFailure,
    UnknownComponent,
    UsageError,
)
from difftool.files import open_regular
from difftool.options import fields, make, plain, suggestion
from difftool.plugins.discovery import ALLOW, DENY
from difftool.plugins.registry import registry
from difftool.settings import Training

if TYPE_CHECKING:
    from torch import Tensor

    from difftool.components import ObjectiveSpec
    from difftool.data.samples import DatasetContext, Samples

C = TypeVar("C", bound=Component)

PARTS: Mapping[str, type[Component]] = {
    base.kind: base for base in (Dataset, NoiseSchedule, Backbone, Prediction, Weighting, TimeDensity)
}
"""The components of a recipe, by kind."""

STEPS = 5_000
"""Steps of training when neither the user nor the backbone says."""
LARGEST_CONFIG = 2**20
"""Bytes of a config file."""
MAY_CHANGE = ("steps", "epochs", "accumulate", "checkpoint_every", "keep", "preview_every", "workers", "threads")
"""Settings that a resumed run may change. None changes what was done; a later end stretches a cosine learning rate, and
another number of threads or parts may change sums in their last digits."""
NOT_READ_BACK = ("run", "plugins", "format")
"""Tables of a config file that record and do not configure."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The components and settings of a run."""

    dataset: Dataset
    schedule: NoiseSchedule
    backbone: Backbone
    prediction: Prediction
    weighting: Weighting
    time: TimeDensity
    training: Training

    def document(self) -> dict[str, Any]:
        """As plain values: one table for each component, one for the training settings."""
        parts = {kind: component_document(getattr(self, kind)) for kind in PARTS}
        return {**parts, "training": plain(self.training)}

    def plugins(self, others: Iterable[Component] = ()) -> dict[str, str]:
        """Distribution and version of every plugin package the components, or others beside them, come from."""
        owners = (registry().owner(type(part)) for part in (*(getattr(self, kind) for kind in PARTS), *others))
        return {owner.distribution: owner.version for owner in owners if owner is not None}

    def with_training(self, **changes: Any) -> Recipe:
        return replace(self, training=replace(self.training, **changes))

    @property
    def name(self) -> str:
        """`swiss-roll-mlp`: what a run folder is called after."""
        return f"{self.dataset.name}-{self.backbone.name}"


def contradictions(before: Recipe, now: Recipe) -> list[str]:
    """What a run was trained as and is not to be any more, such as `--lr is 0.001 in the run, not 0.5`.

    Where the data lie is no part of what they are: a `Path` may change.
    """
    rows = []
    old, new = before.document(), now.document()
    for table in old:
        if old[table].get("name") != new[table].get("name"):  # the options of two components cannot be compared
            rows.append(f"--{table} is {old[table]['name']} in the run, not {new[table]['name']}")
            continue
        free = MAY_CHANGE if table == "training" else _paths(getattr(now, table))
        for key in sorted({*old[table], *new[table]} - {*free}):
            a, b = old[table].get(key), new[table].get(key)
            if a != b:
                flag = key.replace("_", "-")
                where = "" if table == "training" else f"{table}."
                rows.append(f"--{where}{flag} is {_said(a)} in the run, not {_said(b)}")
    return rows


def component_document(component: Component) -> dict[str, Any]:
    return {"name": registry().reference(type(component)), **plain(component)}


def compose(document: Mapping[str, Any], *, make: Any = make, parts: Mapping[str, Component] | None = None) -> Recipe:
    """The recipe of a document; what it leaves out is chosen to suit the rest. Raises `UsageError`.

    `parts` are components that are there already, by kind.
    """
    check_tables(document)
    classes = choose(document, {kind: type(part) for kind, part in (parts or {}).items()})
    made: dict[str, Any] = {
        kind: make(cls, _options(document, kind)) for kind, cls in classes.items() if kind not in (parts or {})
    }
    settings = make(Training, training_values(classes["backbone"], document.get("training", {})))
    if settings.self_condition and not classes["backbone"].self_conditioning:
        raise UsageError(f"--self-condition: the backbone {classes['backbone'].name} has no room for it")
    return Recipe(**{**made, **(parts or {})}, training=settings)


def choose(document: Mapping[str, Any], classes: Mapping[str, type[Component]] | None = None) -> dict[str, type[Any]]:
    """The component classes: those given or named, and for the others those that suit. Raises `UsageError`."""
    chosen: dict[str, type[Any]] = dict(classes or {})
    for kind, base in PARTS.items():
        if kind not in chosen and (name := _name(document, kind)) is not None:
            chosen[kind] = registry().of_kind(base, name)

    def default(kind: str, name: str, asker: type[Component] | None = None) -> None:
        if kind not in chosen:
            chosen[kind] = _default(PARTS[kind], name, asker)

    backbone = chosen.get("backbone")
    default("dataset", backbone.default_dataset if backbone else "swiss-roll", backbone)
    default("backbone", chosen["dataset"].default_backbone, chosen["dataset"])
    default("schedule", "linear")
    default("prediction", chosen["schedule"].default_prediction, chosen["schedule"])
    default("weighting", "none")
    default("time", "uniform")
    return {kind: chosen[kind] for kind in PARTS}


def _default(base: type[C], name: str, asker: type[Component] | None) -> type[C]:
    """What is taken where nobody says; `asker` is the component that it suits. Raises `UsageError`."""
    try:
        return registry().of_kind(base, name)
    except (UnknownComponent, PluginFailure) as error:
        if asker is None:
            raise
        raise UsageError(
            f"{asker.kind} {asker.name} goes with what is not here: {error}; give another --{base.kind}"
        ) from None


def training_values(backbone: type[Backbone], values: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings over the defaults that suit the network; `epochs` puts its default of `steps` aside."""
    defaults = {"steps": STEPS, **backbone.training_defaults}
    if values.get("epochs") is not None:
        defaults.pop("steps")
    return {**defaults, **values}


def check_tables(document: Mapping[str, Any]) -> None:
    """Refuse tables and keys that nobody knows, before anything is looked up."""
    known = {*PARTS, "training", TABLE, *NOT_READ_BACK}
    for key, table in document.items():
        if key not in known:
            raise InvalidOption(key, f"there is no such table{suggestion(key, known)}")
        if key != "format" and not isinstance(table, Mapping):
            raise InvalidOption(key, "must be a table")


def merge(document: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document with values laid over it, table by table.

    A component named anew takes none of the old one's options, and of `steps` and `epochs` the newer one wins.
    """
    merged: dict[str, Any] = {key: dict(table) for key, table in document.items() if isinstance(table, Mapping)}
    for key, values in given.items():
        table = merged.setdefault(key, {})
        if "name" in values and values["name"] != table.get("name"):
            table.clear()
        if "steps" in values or "epochs" in values:
            table.pop("steps", None)
            table.pop("epochs", None)
        table.update(values)
    return merged


def dump_toml(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables of plain values, or of tables of them, as TOML; `tomllib` reads them back."""
    return "\n".join(line for table, values in document.items() for line in _toml_table(table, values))


def _toml_table(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    if len(inner) < len(values) or not values:
        yield f"[{name}]"
        yield from (f"{_toml_key(k)} = {_toml_value(v)}" for k, v in values.items() if k not in inner)
        yield ""
    for key, table in inner.items():
        yield f"[{name}.{_toml_key(key)}]"
        yield from (f"{_toml_key(k)} = {_toml_value(v)}" for k, v in table.items())
        yield ""


def read_toml(path: Path) -> dict[str, Any]:
    """A config file's tables. Raises `UsageError` with file and line."""
    import tomllib

    try:
        return tomllib.loads(_config_text(path))
    except FileNotFoundError:
        raise UsageError(f"config file {path} does not exist") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"config file {path} is not TOML: {str(error).partition(';')[0]}") from None
    except OSError as error:
        raise UsageError(f"config file {path} cannot be read: {error.strerror}") from None


def _config_text(path: Path, errors: str = "strict") -> str:
    with open_regular(path) as file:
        data = file.read(LARGEST_CONFIG + 1)
    if len(data) > LARGEST_CONFIG:
        raise ValueError(f"it is larger than {LARGEST_CONFIG >> 20} MiB")
    return data.decode("utf-8-sig", errors)


def line_of(path: Path, table: str, key: str) -> int | None:
    """The line of a key in a TOML file, for messages; None where it cannot be told."""
    current = ""
    for number, line in enumerate(_config_text(path, "replace").splitlines(), start=1):
        if match := re.match(r"\s*\[([^\]]+)\]", line):
            current = match[1].strip().strip("\"'")
            if current == table and not key:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return None


def _paths(component: Component) -> list[str]:
    return [f.name for f in fields(type(component)) if f.scalar is Path]


def _said(value: Any) -> str:
    """A value as a user would say it."""
    words = {True: "on", False: "off", None: "not set"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _name(document: Mapping[str, Any], kind: str) -> str | None:
    name = document.get(kind, {}).get("name")
    if name is not None and not isinstance(name, str):
        raise UnknownComponent(kind, f"the name of a {kind} must be text")
    return name


def _options(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {key: value for key, value in document.get(kind, {}).items() if key != "name"}


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if value is None:
        raise TypeError("TOML has no word for None; leave the key out")
    return json.dumps(value)


def made_with(recorded: object) -> str:
    """What to install or change, where a file was made with packages that are not here as it knew them.

    `recorded` is what the file says: distributions and their versions.
    """
    if not isinstance(recorded, Mapping):
        return ""
    return "".join(
        f"; the file says that it was made with {name} {version}, {reason}"
        for name, version in recorded.items()
        if is_release(name, version) and (reason := _absence(name, version))
    )


def is_release(name: object, version: object) -> bool:
    """Whether a stranger's text is no more than the name and the version that a package can have (PEP 508, PEP 440)."""
    return all(isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9][\w.+!-]{0,99}", text) for text in (name, version))


def _absence(name: str, version: str) -> str:
    """Why a package's components are not here as they were, or an empty text."""
    here = [plugin for plugin in registry().plugins if plugin.distribution == name]
    if any(identity.partition(":")[0] == name for identity in registry().left_out):
        return f"which {ALLOW} or {DENY} leaves out"
    if not here:
        return f"which is not installed: pip install {name}=={version}, if you trust it"
    if problems := [problem for plugin in here for problem in plugin.problems]:
        return f"which was set aside: {problems[0]}"
    return "" if here[0].version == version else f"and {here[0].version} is installed: pip install {name}=={version}"


class AbsentDataset(Dataset):
    """Stands for a dataset whose plugin is not here: sampling needs none."""

    def load(self, context: DatasetContext) -> Samples:
        raise ValueError("its plugin is not installed")


class AbsentWeighting(Weighting):
    """Stands for a weighting whose plugin is not here: only training needs it."""

    def weight(self, native: Tensor, spec: ObjectiveSpec) -> Tensor:
        raise ValueError("its plugin is not installed")


class AbsentTime(TimeDensity):
    """Stands for a time density whose plugin is not here: only training needs it."""

    def density(self, spec: ObjectiveSpec) -> Tensor:
        raise ValueError("its plugin is not installed")


STAND_INS: Mapping[str, type[Component]] = {base.kind: base for base in (AbsentDataset, AbsentWeighting, AbsentTime)}
"""What sampling does not need, by kind: a file may name one whose plugin is not here, or none."""


def _absent(tables: Mapping[str, Any]) -> dict[str, Component]:
    """Stand-ins, by kind, for what a file names, this machine has not, and sampling does not need."""
    absent: dict[str, Component] = {}
    for kind, base in STAND_INS.items():
        name = tables.get(kind, {}).get("name", "")
        if re.fullmatch(r"[\w.:-]{1,100}", name) and name not in registry().names(kind):
            named = types.new_class(base.__name__, (base,), {"name": name})
            absent[kind] = named()
    return absent


def read_recipe(path: Path, document: Mapping[str, Any]) -> Recipe:
    """The recipe in a file's metadata, through the register and the components' own validation."""
    tables = {kind: document[kind] for kind in (*PARTS, "training") if kind in document}
    for kind in (*PARTS, "training"):
        table = tables.get(kind, {"name": ""} if kind in STAND_INS else None)
        if not isinstance(table, Mapping) or (kind in PARTS and not isinstance(table.get("name"), str)):
            raise BadFile(f"{path}: its metadata name no {kind}")
    try:
        return compose(tables, parts=_absent(tables))
    except InvalidOption as error:
        raise BadFile(f"{path}: its metadata are refused: {error}{made_with(document.get('plugins'))}") from None
    except UsageError as error:
        raise BadFile(f"{path}: {error}{made_with(document.get('plugins'))}") from None


TABLE = "loggers"
"""Of a config file: a table for each logger, by its name."""
