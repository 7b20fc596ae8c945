"""A recipe: the components of a run with their options, and its training settings, as plain values.

The same tables are a run's `config.toml` and the metadata of its weights. They hold names and plain values, never an
import path: names are looked up in the registry, and values pass through the components' own validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from difftool.components import (
    KINDS,
    Backbone,
    Companion,
    Component,
    Dataset,
    Features,
    Metric,
    Optimizer,
    suggestion_attribute,
)
from difftool.data.memory import Memory
from difftool.errors import InvalidOption, PluginFailure, UnknownComponent, UsageError
from difftool.options import dashed, fields, make, plain, suggestion
from difftool.paths import is_path, without_paths
from difftool.plugins.registry import registry
from difftool.scripts import script_of
from difftool.settings import AUTO, Training

C = TypeVar("C", bound=Component)
Make = Callable[[type[Any], Mapping[str, object]], Any]

STEPS = 5_000
"""Training steps when neither the user nor the backbone names any."""
MAY_CHANGE = (
    *(
        "steps",
        "epochs",
        "accumulate",
        "checkpoint_activations",
        "shard",
        "checkpoint_every",
        "keep",
        "preview_every",
        "snapshot_every",
        "workers",
    ),
    *("evaluate_every", "evaluate_samples", "evaluate_against", "keep_best", "threads"),
)
"""Settings that may differ when a run resumes. None of them changes the steps already made; a later end stretches a
cosine learning rate, and another number of threads or parts may change sums in their last digits."""
LOCAL = ("init_from", "init_weights")
"""Settings that name a file of this machine, where a run began. Nothing compares them, and files of weights hold none
of them."""
NOT_READ_BACK = ("run", "plugins", "format")
"""Tables of a config file that only record."""


def recipe_kinds() -> dict[str, type[Component]]:
    """Return the kinds of which a recipe has exactly one component each."""
    return {kind: base for kind, base in KINDS.items() if "train" in base.commands and not base.several}


def companion_kinds() -> dict[str, type[Component]]:
    """Return the kinds that accompany a run and are not part of its recipe, by their config table (`loggers`)."""
    return {base.plural(): base for base in KINDS.values() if issubclass(base, (Companion, Metric, Features))}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The components and settings of a run. `recipe[Dataset]` is its dataset, and so for every kind."""

    parts: Mapping[str, Component]
    """One component of each kind, by kind."""
    training: Training

    def __getitem__(self, base: type[C]) -> C:
        part = self.parts[base.kind]
        assert isinstance(part, base)
        return part

    def document(self) -> dict[str, dict[str, Any]]:
        """Return the recipe as plain values: a table for each component, and one for the training settings."""
        tables = {kind: component_table(part) for kind, part in self.parts.items()}
        return {**tables, "training": plain(self.training)}

    def shared_document(self) -> dict[str, dict[str, Any]]:
        """Return the document for files of weights, which others may get: it names no path of this machine."""
        tables = self.document()
        shared = {kind: without_paths(type(part), tables[kind]) for kind, part in self.parts.items()}
        settings = {name: value for name, value in tables["training"].items() if name not in LOCAL}
        return {**shared, "training": settings}

    def plugins(self, companions: Iterable[Component] = ()) -> dict[str, str]:
        """Return what the components come from, also companions: packages with versions, scripts with digests."""
        return plugins_of((*self.parts.values(), *companions))

    def with_training(self, **changes: Any) -> Recipe:
        """Return the recipe with other training settings."""
        return replace(self, training=replace(self.training, **changes))

    def as_begun(self, before: Recipe) -> Recipe:
        """Return the recipe with what a run of it chose as it began, for each setting that was left to it."""
        left = [name for name, value in plain(self.training).items() if value == AUTO]
        return self.with_training(**{name: getattr(before.training, name) for name in left})

    @property
    def name(self) -> str:
        """A name for run folders: `swiss-roll-mlp`."""
        return f"{self[Dataset].name}-{self[Backbone].name}"


def plugins_of(components: Iterable[Component]) -> dict[str, str]:
    """Return what components come from: packages with their versions, and scripts with their digests."""
    found: dict[str, str] = {}
    for cls in map(type, components):
        if (owner := registry().owner(cls)) is not None:
            found[owner.distribution] = owner.version
        elif (script := script_of(cls)) is not None:
            found[script.name] = script.digest
    return found


def component_table(component: Component) -> dict[str, Any]:
    """Return a component as plain values: its name and its options."""
    return {"name": registry().reference(type(component)), **plain(component)}


def companion_tables(companions: Iterable[Component]) -> dict[str, dict[str, Any]]:
    """Return components that accompany a run as tables of tables: `{"loggers": {"csv": {...}}}`."""
    tables: dict[str, dict[str, Any]] = {}
    for companion in companions:
        tables.setdefault(companion.plural(), {})[registry().reference(type(companion))] = plain(companion)
    return tables


def differences(before: Recipe, now: Recipe) -> list[str]:
    """Return the differences between the recipe a run was trained with and the requested one.

    Each reads such as `--lr is 0.001 in the run, not 0.5`. Paths are not compared, since the data may have moved.
    """
    rows = []
    old, new = before.document(), now.document()
    for table in old:
        if old[table].get("name") != new[table].get("name"):  # the options of two components cannot be compared
            rows.append(f"--{table} is {old[table]['name']} in the run, not {new[table]['name']}")
            continue
        if table == "training":
            ignored = {*MAY_CHANGE, *LOCAL}
        else:
            own = fields(cls := type(now.parts[table]))
            ignored = {f.name for f in own for some in (old, new) if is_path(cls, f, some[table].get(f.name))}
        for key in sorted({*old[table], *new[table]} - ignored):
            a, b = old[table].get(key), new[table].get(key)
            if a != b:
                prefix = "" if table == "training" else f"{table}."
                rows.append(f"--{prefix}{dashed(key)} is {_in_words(a)} in the run, not {_in_words(b)}")
    return rows


def _in_words(value: Any) -> str:
    words = {True: "on", False: "off", None: "not set"}
    if isinstance(value, list):
        return ",".join(map(_in_words, value)) or "none"
    return words[value] if value is None or isinstance(value, bool) else str(value)


def build_recipe(
    document: Mapping[str, Any], *, make: Make = make, parts: Mapping[str, Component] | None = None
) -> Recipe:
    """Return the recipe of a document; what the document leaves out is chosen to suit the rest.

    `parts` are components that exist already, by kind, and `make` makes the others. Raises `UsageError`.
    """
    check_tables(document)
    ready = dict(parts or {})
    classes = resolve(document, {kind: type(part) for kind, part in ready.items()})
    if Backbone.kind not in ready and "name" not in document.get(Backbone.kind, {}):
        if Dataset.kind not in ready:
            ready[Dataset.kind] = make(classes[Dataset.kind], options_in(document, Dataset.kind))
        data = ready[Dataset.kind]
        if isinstance(data, Dataset) and (name := data.suggested_backbone()) != data.default_backbone:
            known = {kind: type(part) for kind, part in ready.items()}
            known |= {kind: cls for kind, cls in classes.items() if document.get(kind)}  # options given are theirs
            classes = resolve(document, {**known, Backbone.kind: registry().of_kind(Backbone, name)})
    made = {kind: ready.get(kind) or make(cls, options_in(document, kind)) for kind, cls in classes.items()}
    settings = make(Training, training_values(classes[Backbone.kind], document.get("training", {})))
    if settings.shard and not (document.get(Optimizer.kind) or ready.get(Optimizer.kind)):
        # the one that the backbone suggests may need whole weights
        made[Optimizer.kind] = make(registry().of_kind(Optimizer, Optimizer.default), {})
    if settings.self_condition and not classes[Backbone.kind].self_conditioning:
        raise UsageError(f"--self-condition: the backbone {classes[Backbone.kind].name} has no room for it")
    if settings.checkpoint_activations and not classes[Backbone.kind].activation_checkpointing:
        raise UsageError(
            f"--checkpoint-activations: the backbone {classes[Backbone.kind].name} does not support it; "
            "--accumulate saves memory too"
        )
    return Recipe(parts=made, training=settings)


def resolve(document: Mapping[str, Any], classes: Mapping[str, type[Component]] | None = None) -> dict[str, type[Any]]:
    """Return the component class of each kind: those given or named, and for the others those that suit them.

    Raises `UsageError`.
    """
    chosen: dict[str, type[Any]] = dict(classes or {})
    for kind, base in recipe_kinds().items():
        name = document.get(kind, {}).get("name")
        if kind in chosen or name is None:
            continue
        if not isinstance(name, str):
            raise UnknownComponent(kind, f"the name of a {kind} must be text")
        chosen[kind] = Memory if in_memory(kind, document[kind]) else registry().of_kind(base, name)
    for kind, base in sorted(recipe_kinds().items(), key=lambda pair: pair[1] not in (Dataset, Backbone)):
        if kind not in chosen:  # data and network come first, since they suggest the rest
            chosen[kind] = suitable(base, chosen.values())
    return {kind: chosen[kind] for kind in recipe_kinds()}


def in_memory(kind: str, table: Mapping[str, Any]) -> bool:
    """Return whether a table records data that a Python script held in memory, which no plugin offers."""
    return kind == Dataset.kind and table.get("name") == Memory.name and "fingerprint" in table


def suitable(base: type[C], chosen: Iterable[type[Component]]) -> type[C]:
    """Return the component that one of those chosen suggests for a kind, or the kind's default. Raises `UsageError`."""
    for other in chosen:
        name = getattr(other, suggestion_attribute(base), None)
        if name is not None:
            try:
                return registry().of_kind(base, name)
            except (UnknownComponent, PluginFailure) as error:
                reason = f"suggests a {base.kind} that is not installed: {error}; name another {base.flag}"
                raise UsageError(f"{other.kind} {other.name} {reason}") from None
    return registry().of_kind(base, base.default)


def training_values(backbone: type[Backbone], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return training settings over the defaults that suit the network; `epochs` replaces its default of `steps`."""
    defaults = {"steps": STEPS, **backbone.training_defaults}
    if values.get("epochs") is not None:
        defaults.pop("steps")
    return {**defaults, **values}


def check_tables(document: Mapping[str, Any]) -> None:
    """Refuse unknown tables, before anything is looked up. Raises `InvalidOption`."""
    known = {*recipe_kinds(), "training", *companion_kinds(), *NOT_READ_BACK}
    for key, table in document.items():
        if key not in known:
            raise InvalidOption(key, f"there is no such table{suggestion(key, known)}")
        if key != "format" and not isinstance(table, Mapping):
            raise InvalidOption(key, "must be a table")
        for name, options in table.items() if key in companion_kinds() else ():
            if not isinstance(options, Mapping):
                raise InvalidOption(key, f"{name} must be a table, [{key}.{name}]")


def merge(document: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the document with values laid over it, table by table.

    A component of another name takes none of the former's options, and of `steps` and `epochs` the newer one wins.
    """
    merged: dict[str, Any] = {key: dict(table) for key, table in document.items() if isinstance(table, Mapping)}
    for key, newer in values.items():
        table = merged.setdefault(key, {})
        if "name" in newer and newer["name"] != table.get("name"):
            table.clear()
        if "steps" in newer or "epochs" in newer:
            table.pop("steps", None)
            table.pop("epochs", None)
        table.update(newer)
    return merged


def options_in(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the options of a component in a document, without its name."""
    return {key: value for key, value in document.get(kind, {}).items() if key != "name"}
