"""Finding plugins, keeping broken ones apart, looking names up."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from difftool import Component, Dataset, Sampler, hookimpl, option
from difftool.errors import PluginFailure, UnknownComponent
from difftool.plugins import discovery as finding
from difftool.plugins.discovery import choose, installed
from difftool.plugins.loading import Plugin, load
from difftool.plugins.registry import Registry
from difftool.plugins.registry import registry as real_registry


@dataclass(frozen=True)
class Distribution:
    name: str
    version: str = "1.0"


@dataclass(frozen=True)
class Doing:
    """What a module does when it is imported."""

    load: Callable[[], Any]


@dataclass(frozen=True)
class FakeEntryPoint:
    """What `importlib.metadata` finds, as far as difftool looks."""

    name: str
    dist: Distribution | None
    loads: Any = field(repr=False)
    group: str = "difftool"
    value: str = "somewhere:something"

    def load(self) -> Any:
        if isinstance(self.loads, BaseException):
            raise self.loads
        return self.loads.load() if isinstance(self.loads, Doing) else self.loads


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no picture")


class Refusing:
    """As a module whose `__getattr__` raises."""

    __name__ = "refusing"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("lazy " + name)


class Odd(BaseException):
    pass


def dataset(called: str, **space: Any) -> type[Dataset]:
    """A dataset class of that name."""
    return type("Made", (Dataset,), {"load": lambda self, context: None, "__doc__": "Made.", **space}, name=called)


def module(hook: Callable[[], Any] | None = None, **hooks: Callable[[], Any]) -> Any:
    """A plugin module with a `difftool_datasets` hook, or the hooks named."""
    hooks = {"difftool_datasets": hook, **hooks} if hook else hooks
    return SimpleNamespace(**{name: _marked(function) for name, function in hooks.items()})


def _marked(function: Callable[[], Any]) -> Any:
    def call() -> Any:
        return function()

    return hookimpl(call)


def point(distribution: str, name: str, loads: Any, version: str = "1.0") -> Any:
    return FakeEntryPoint(name, Distribution(distribution, version), loads)


def providing(*components: Any) -> Any:
    return module(lambda: list(components))


def registry_of(*points: Any) -> Registry:
    return Registry(load(points))


def only_problem(registry: Registry, identity: str) -> str:
    (plugin,) = (p for p in registry.plugins if p.identity == identity)
    (problem,) = plugin.problems
    assert problem.cure
    assert "\n" not in problem.cure
    return problem.reason


SOUND = point("sound", "data", providing(dataset("sound-data")))


def test_a_sound_plugin_is_found_with_its_version() -> None:
    registry = registry_of(point("my_Dist", "data", providing(dataset("rings")), "2.5"))
    (plugin,) = registry.plugins
    assert (plugin.identity, plugin.version, plugin.problems) == ("my-dist:data", "2.5", [])
    assert registry.names("dataset") == ["rings"]
    assert registry.get("dataset", "rings") is plugin.components[0]
    assert registry.get("dataset", "my-dist:rings") is plugin.components[0]
    assert registry.owner(plugin.components[0]) is plugin
    assert registry.of_kind(Dataset, "rings") is plugin.components[0]


def test_several_hooks_of_one_module() -> None:
    class Walk(Sampler, name="walk"):
        def sample(self, denoise, x, levels, noise): ...  # type: ignore[no-untyped-def]

    both = module(difftool_datasets=lambda: (dataset("a"), dataset("b")), difftool_samplers=lambda: iter([Walk]))
    registry = registry_of(point("both", "x", both))
    assert registry.names("dataset") == ["a", "b"]
    assert registry.get("sampler", "walk") is Walk


def _hook_that_raises() -> Any:
    raise RuntimeError("boom")


def raising(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


class Renamed(Dataset, name="renamed"):
    def load(self, context: Any) -> Any: ...


Renamed.name = 5  # type: ignore[assignment]


class Strayed(Dataset, name="strayed"):
    kind = "nowhere"

    def load(self, context: Any) -> Any: ...


class NoLoad(Dataset, name="no-load"):
    pass


@pytest.mark.parametrize(
    ("loads", "piece"),
    [
        (ImportError("cannot import name 'x'"), "failed to import: ImportError: cannot import name 'x'"),
        (SyntaxError("bad\nsyntax"), "failed to import: SyntaxError: bad syntax"),
        (SystemExit("no"), "failed to import: SystemExit: no"),
        (SystemExit(), "failed to import: SystemExit"),
        (RecursionError(), "failed to import: RecursionError"),
        (ModuleNotFoundError("No module named 'jaxx'", name="jaxx"), "needs the module 'jaxx', which is not installed"),
        (AttributeError("module 'm' has no attribute 'plugin'"), "failed to import: AttributeError: module 'm'"),
        (module(difftool_dataset=list), "there is no hook 'difftool_dataset'"),
        (SimpleNamespace(difftool_api=3), "made for version 3 of the plugin API; this difftool has 2"),
        (SimpleNamespace(difftool_api=1), "made for version 1 of the plugin API; this difftool has 2"),
        (SimpleNamespace(difftool_api="1.0"), "difftool_api is '1.0'"),
        (module(lambda: 1 / 0), "difftool_datasets() failed: ZeroDivisionError: division by zero"),
        (module(_hook_that_raises), "difftool_datasets() failed: RuntimeError: boom"),
        (module(lambda: None), "difftool_datasets() failed: TypeError"),
        (module(lambda: [3]), "3 is not a component class"),
        (module(lambda: [dict]), "is not a component class"),
        (module(difftool_samplers=lambda: [dataset("d")]), "difftool_samplers() returned Made, which is not a Sampler"),
        (module(lambda: [NoLoad]), "dataset 'no-load': load() is not defined"),
        (module(lambda: [dataset("Bad_Name")]), "name must be lower-case words joined by '-', not 'Bad_Name'"),
        (module(lambda: [dataset("twice"), dataset("twice")]), "dataset 'twice': provided twice by broken:x"),
        (Odd("x"), "failed to import: Odd: x"),
        (GeneratorExit(), "failed to import: GeneratorExit"),
        (Speechless(), "failed to import: Speechless"),
        (module(raising(SystemExit(0))), "difftool_datasets() failed: SystemExit: 0"),
        (module(raising(Odd())), "difftool_datasets() failed: Odd"),
        (module(raising(Speechless())), "difftool_datasets() failed: Speechless"),
        (Refusing(), "failed when it was registered: RuntimeError: lazy difftool_api"),
        (SimpleNamespace(difftool_api=Unshown()), "failed when it was registered: RuntimeError: no picture"),
        (module(lambda: [Unshown()]), "what difftool_datasets() returned cannot be examined: RuntimeError: no picture"),
        (module(lambda: [Renamed]), "Renamed: name must be lower-case words joined by '-', not 5"),
        (module(lambda: [Strayed]), "Strayed: kind must stay 'dataset', as Dataset declares it"),
    ],
)
def test_a_broken_plugin_is_set_aside_and_stops_nobody(loads: Any, piece: str) -> None:
    registry = registry_of(point("broken", "x", loads), SOUND, point("zoo", "x", providing(dataset("zoo"))))
    assert piece in only_problem(registry, "broken:x")
    assert "\n" not in only_problem(registry, "broken:x")
    assert {"sound-data", "zoo"} <= set(registry.names("dataset"))
    assert [p.identity for p in registry.set_aside] == ["broken:x"]


def test_a_broken_component_leaves_its_neighbours() -> None:
    registry = registry_of(point("half", "x", providing(NoLoad, dataset("whole"))))
    assert registry.names("dataset") == ["whole"]
    assert "load() is not defined" in only_problem(registry, "half:x")
    with pytest.raises(PluginFailure, match=r"plugin half:x was set aside: dataset 'no-load': load\(\) is not defined"):
        registry.get("dataset", "no-load")


def test_a_broken_hook_leaves_its_neighbours() -> None:
    both = module(difftool_datasets=lambda: [dataset("here")], difftool_samplers=lambda: 1 / 0)
    registry = registry_of(point("half", "x", both))
    assert registry.names("dataset") == ["here"]
    assert "difftool_samplers() failed: ZeroDivisionError" in only_problem(registry, "half:x")


def test_keyboard_interrupt_is_no_problem_of_the_plugin() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which may be ignored where tests run
    try:
        with pytest.raises(KeyboardInterrupt):
            registry_of(point("slow", "x", KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("loads", [KeyboardInterrupt(), module(raising(KeyboardInterrupt()))])
def test_a_keyboard_interrupt_of_a_plugins_own_is(loads: Any) -> None:
    """Under the command line's handlers, which raise another exception."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        registry = registry_of(point("broken", "x", loads), SOUND)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "failed" in only_problem(registry, "broken:x")
    assert registry.names("dataset") == ["sound-data"]


def test_a_class_of_another_plugin_is_not_taken_from_it() -> None:
    ours = dataset("rings")
    registry = registry_of(
        point("difftool", "x", providing(ours)), point("aa", "x", providing(ours, dataset("own"))), SOUND
    )
    assert registry.get("dataset", "rings") is ours
    assert registry.reference(ours) == "rings"
    assert registry.set_aside == []
    assert registry.names("dataset") == ["own", "rings", "sound-data"]


def test_two_entry_points_of_one_module() -> None:
    one = providing(dataset("rings"))
    registry = registry_of(point("aa", "x", one), point("aa", "y", one))
    assert "aa:x" in only_problem(registry, "aa:y")
    assert registry.names("dataset") == ["rings"]


@pytest.mark.parametrize("value", ["", ":", "p ep", "p:"])
def test_an_entry_point_that_names_no_module(value: str) -> None:
    strange: Any = EntryPoint("x", value, "difftool")
    assert only_problem(registry_of(strange, SOUND), "unknown:x").startswith("failed to import: ")


@pytest.mark.parametrize(
    ("metadata", "entry_points"),
    [
        ("Metadata-Version: 2.1\nName: my-made\n", "[difftool]\nx = my_made_module\n"),
        ("Metadata-Version: 2.1\nVersion: 1\n", "[difftool]\nx = my_made_module\n"),
        (None, "[difftool]\nx = my_made_module\n"),
        ("Metadata-Version: 2.1\nName: my-made\nVersion: 1.0\n", "[difftool]\nno equals sign\n"),
    ],
)
def test_packages_with_odd_metadata_hide_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str | None, entry_points: str
) -> None:
    info = tmp_path / "my_made-1.0.dist-info"
    info.mkdir()
    if metadata is not None:
        (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    found = installed("difftool")
    assert any(entry_point.dist is not None and entry_point.dist.name == "difftool" for entry_point in found)
    list(load(e for e in found if e.name == "x"))
    finding.announcements.__wrapped__(None, "")


def test_a_built_in_keeps_its_name() -> None:
    ours, theirs = dataset("rings"), dataset("rings")
    registry = registry_of(point("stranger", "x", providing(theirs)), point("difftool", "datasets", providing(ours)))
    assert registry.get("dataset", "rings") is ours
    assert registry.get("dataset", "difftool:rings") is ours
    assert registry.get("dataset", "stranger:rings") is theirs
    assert registry.names("dataset") == ["rings", "stranger:rings"]
    assert only_problem(registry, "stranger:x") == "dataset 'rings': the name is taken by difftool"
    assert registry.set_aside[0].problems[0].cure == "reach it as stranger:rings"
    assert [p.identity for p in registry.set_aside] == ["stranger:x"]


def test_of_two_strangers_neither_gets_the_name() -> None:
    a, b = dataset("rings"), dataset("rings")
    registry = registry_of(point("bb", "x", providing(b)), point("aa", "x", providing(a)))
    assert registry.names("dataset") == ["aa:rings", "bb:rings"]
    assert (registry.get("dataset", "aa:rings"), registry.get("dataset", "bb:rings")) == (a, b)
    assert only_problem(registry, "aa:x") == "dataset 'rings': the name is taken by bb"
    assert only_problem(registry, "bb:x") == "dataset 'rings': the name is taken by aa"
    cures = [plugin.problems[0].cure for plugin in registry.plugins]
    assert cures == [
        "reach it as aa:rings, or leave one out by DIFFTOOL_DISABLE_PLUGINS=bb",
        "reach it as bb:rings, or leave one out by DIFFTOOL_DISABLE_PLUGINS=aa",
    ]
    with pytest.raises(PluginFailure, match="aa:x was set aside: dataset 'rings': the name is taken by bb"):
        registry.get("dataset", "rings")


def test_one_name_in_two_kinds_is_no_duplicate() -> None:
    class Rings(Sampler, name="rings"):
        def sample(self, denoise, x, levels, noise): ...  # type: ignore[no-untyped-def]

    registry = registry_of(
        point("aa", "x", providing(dataset("rings"))), point("bb", "x", module(difftool_samplers=lambda: [Rings]))
    )
    assert registry.set_aside == []
    assert registry.get("sampler", "rings") is Rings


def test_the_same_distribution_found_twice_counts_once() -> None:
    registry = registry_of(
        point("My.Data", "x", providing(dataset("rings")), "1.0"),
        point("my-data", "x", providing(dataset("rings")), "2.0"),
    )
    assert [p.identity for p in registry.plugins] == ["my-data:x"]
    assert registry.set_aside == []


def test_order_is_sorted_whatever_was_found_first() -> None:
    points = [
        point(d, e, providing(dataset(f"{d}-{e}"), dataset("shared")))
        for d in ("zz", "difftool", "aa")
        for e in ("two", "one")
    ]
    expected: list[Any] = []
    for seed in range(6):
        random.Random(seed).shuffle(points)
        registry = registry_of(*points)
        found = [[p.identity for p in registry.plugins], registry.names("dataset"), registry.plugins[-1].problems]
        expected = expected or found
        assert found == expected
    assert expected[0] == ["difftool:one", "difftool:two", "aa:one", "aa:two", "zz:one", "zz:two"]


ENTRY_POINTS = [
    point("difftool", "datasets", None),
    point("My_Data", "a", None),
    point("My_Data", "b", None),
    point("other", "x", None),
]


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, ["difftool:datasets", "My_Data:a", "My_Data:b", "other:x"]),
        ({"DIFFTOOL_PLUGINS": ""}, ["difftool:datasets"]),
        ({"DIFFTOOL_PLUGINS": "other"}, ["difftool:datasets", "other:x"]),
        ({"DIFFTOOL_PLUGINS": " my.data , nobody "}, ["difftool:datasets", "My_Data:a", "My_Data:b"]),
        ({"DIFFTOOL_DISABLE_PLUGINS": ""}, ["difftool:datasets", "My_Data:a", "My_Data:b", "other:x"]),
        ({"DIFFTOOL_DISABLE_PLUGINS": "my-data"}, ["difftool:datasets", "other:x"]),
        ({"DIFFTOOL_DISABLE_PLUGINS": "MY-DATA:b"}, ["difftool:datasets", "My_Data:a", "other:x"]),
        ({"DIFFTOOL_DISABLE_PLUGINS": "difftool"}, ["difftool:datasets", "My_Data:a", "My_Data:b", "other:x"]),
        ({"DIFFTOOL_PLUGINS": "other", "DIFFTOOL_DISABLE_PLUGINS": "other"}, ["difftool:datasets"]),
    ],
)
def test_allow_and_deny(environment: dict[str, str], kept: list[str]) -> None:
    allowed, denied = environment.get("DIFFTOOL_PLUGINS"), environment.get("DIFFTOOL_DISABLE_PLUGINS", "")
    let_through, left_out = choose(ENTRY_POINTS, allowed, denied)
    assert [f"{e.dist.name}:{e.name}" for e in let_through] == kept  # type: ignore[union-attr]
    assert len(left_out) == len(ENTRY_POINTS) - len(kept)


def test_an_entry_point_without_distribution() -> None:
    loose: Any = FakeEntryPoint("x", None, providing(dataset("loose")))
    registry = registry_of(loose)
    assert registry.plugins[0].identity == "unknown:x"
    assert registry.get("dataset", "loose").name == "loose"


def test_an_unknown_name_is_told_with_the_nearest_and_with_what_was_set_aside() -> None:
    sound = registry_of(SOUND)
    with pytest.raises(UnknownComponent) as caught:
        sound.get("dataset", "sound-dat")
    assert str(caught.value) == ("unknown dataset 'sound-dat'; did you mean 'sound-data'? (known: sound-data)")
    assert caught.value.exit_code == 2
    broken = [point(f"broken-{i}", "x", ImportError("no")) for i in range(2)]
    with pytest.raises(UnknownComponent, match=r"; 1 plugin was set aside, see 'difftool plugins'"):
        registry_of(SOUND, broken[0]).get("dataset", "nope")
    with pytest.raises(UnknownComponent, match="; 2 plugins were set aside, see 'difftool plugins'"):
        registry_of(SOUND, *broken).get("dataset", "nope")


@pytest.mark.parametrize("name", ["broken", "x", "broken:x"])
def test_asking_for_a_broken_plugin_tells_its_cause(name: str) -> None:
    registry = registry_of(SOUND, point("broken", "x", ImportError("no backend")))
    with pytest.raises(PluginFailure, match="plugin broken:x was set aside: failed to import") as caught:
        registry.get("dataset", name)
    assert caught.value.exit_code == 1


def test_asking_a_broken_distribution_for_its_component_tells_the_cause() -> None:
    registry = registry_of(SOUND, point("broken", "x", ImportError("no backend")))
    with pytest.raises(PluginFailure, match="plugin broken:x was set aside: failed to import: ImportError: no backend"):
        registry.get("dataset", "broken:rings")


def test_the_cause_told_is_that_of_the_component_asked_for() -> None:
    registry = registry_of(point("half", "x", providing(dataset("Bad_Name"), NoLoad)))
    with pytest.raises(PluginFailure, match=r"load\(\) is not defined"):
        registry.get("dataset", "no-load")


def test_the_cause_told_is_none_of_another_component() -> None:
    registry = registry_of(point("half", "x", module(lambda: [NoLoad], difftool_samplers=lambda: 1 / 0)))
    with pytest.raises(UnknownComponent, match="1 plugin was set aside"):
        registry.get("dataset", "half:rings")
    with pytest.raises(PluginFailure, match=r"difftool_samplers\(\) failed"):
        registry.get("sampler", "half:walk")


def test_names_are_never_paths_or_imports() -> None:
    registry = registry_of(SOUND)
    for name in ("os:system", "../../x", "", "sound:", ":", "sound-data ", "SOUND-DATA"):
        with pytest.raises(UnknownComponent):
            registry.get("dataset", name)


def test_a_reference_finds_the_same_component_again() -> None:
    ours, theirs, alone = dataset("rings"), dataset("rings"), dataset("alone")
    registry = registry_of(
        point("difftool", "datasets", providing(ours)), point("stranger", "x", providing(theirs, alone))
    )
    assert [registry.reference(c) for c in (ours, theirs, alone)] == ["rings", "stranger:rings", "alone"]
    for component in (ours, theirs, alone):
        assert registry.get("dataset", registry.reference(component)) is component
    assert registry.reference(dataset("unregistered")) == "unregistered"
    assert registry.owner(dataset("unregistered")) is None


def test_every_built_in_can_be_referred_to() -> None:
    registry = real_registry()
    assert registry.set_aside == []
    for plugin in registry.plugins:
        assert plugin.built_in
        for component in plugin.components:
            assert registry.get(component.kind, registry.reference(component)) is component
            assert registry.reference(component) == component.name


def test_importing_the_built_ins_imports_no_torch() -> None:
    """`imports_torch` is what `difftool plugins` shows."""
    assert not any(p.imports_torch for p in real_registry().plugins)


def test_who_imports_torch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def imports() -> Any:
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # type: ignore[arg-type]
        return providing(dataset("heavy"))

    heavy = point("heavy", "x", Doing(imports))
    assert [p.imports_torch for p in load([heavy, SOUND])] == [True, False]


def test_a_registry_of_nothing() -> None:
    registry = Registry([])
    with pytest.raises(UnknownComponent, match=r"unknown sampler 'ddim' \(known: \)"):
        registry.get("sampler", "ddim")
    assert registry.names("sampler") == []
    plugin = Plugin("d", "e", "1")
    assert (plugin.identity, plugin.built_in) == ("d:e", False)


def test_components_of_a_plugin_may_have_options() -> None:
    class Sized(Dataset, name="sized"):
        size: int = option(default=3, ge=1)

        def load(self, context): ...  # type: ignore[no-untyped-def]

    found: type[Component] = registry_of(point("p", "x", providing(Sized))).get("dataset", "sized")
    assert found is Sized
