"""Option records: what a subclass becomes, what values it takes, and which classes cannot be offered."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from difftool import Backbone, Command, Component, Dataset, Logger, NoiseSchedule, Sampler, Spacing, Writer, option
from difftool.components import KINDS
from difftool.errors import InvalidOption, UsageError
from difftool.options import LONGEST_TUPLE, Details, Options, fields, make, plain, suggestion
from difftool.plugins.registry import registry
from difftool.plugins.validation import problem
from difftool.runs.config import dump_toml
from difftool.settings import Sampling, Training


class Everything(Options):
    """One field of every type."""

    flag: bool = option(default=False)
    whole: int = option(default=3, ge=0, le=10)
    real: float = option(default=0.5, gt=0, lt=1)
    text: str = option(default="x")
    path: Path | None = option(default=None)
    choice: Literal["a", "b"] = option(default="a")
    maybe: int | None = option(default=None, ge=1)
    many: tuple[int, ...] = option(default=(1, 2), ge=1)
    pair: tuple[float, float] = option(default=(0.0, 1.0))
    copy: int = option(default=1)
    schema: str = option(default="s")
    json: bool = option(default=True)
    model_config: int = option(default=0)
    values: int = option(default=7)


class Needed(Options):
    must: int = option(ge=1)


ODD = (
    "quote \" and ' here",
    "back\\slash \\n \\u0041",
    "line\nbreak\r\ttab",
    "\x7f DEL \x00 NUL \x1b[31m \x85 \u2028",
    "ünïcode 漢字 😀 \U0001f9ea",
    "",
    "[table]\nkey = 1 # no comment",
    "'''",
    '"""',
)


def test_a_record_is_a_frozen_keyword_only_dataclass() -> None:
    record = Everything(whole=4)
    assert dataclasses.is_dataclass(record)
    assert (record.whole, record.copy, record.many) == (4, 1, (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.whole = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Everything(True)  # type: ignore[misc]
    with pytest.raises(TypeError):
        Everything(nope=1)  # type: ignore[call-arg]
    assert Everything(whole=4) == record
    assert hash(Everything(whole=4)) == hash(record)
    assert Everything(whole=5) != record


def test_fields_of_a_subclass_follow_those_of_its_base() -> None:
    class Base(Options):
        a: int = option(default=1)

    class Derived(Base):
        b: int = option(default=2)

    assert [f.name for f in fields(Derived)] == ["a", "b"]
    assert make(Derived, {"a": 5}) == Derived(a=5, b=2)
    assert [f.name for f in fields(Base)] == ["a"]


def test_a_component_takes_its_name_and_kind_from_the_class_line() -> None:
    class Mine(Sampler, name="mine"):
        def sample(self, denoise, x, levels, noise): ...  # type: ignore[no-untyped-def]

    class Unnamed(Mine):
        pass

    assert (Mine.kind, Mine.name) == ("sampler", "mine")
    assert Unnamed.name == ""  # a name is never inherited: two classes would share it
    assert set(KINDS) == {
        *("dataset", "schedule", "backbone", "sampler", "spacing", "prediction", "weighting", "timestep-sampling"),
        *("codec", "guidance", "loss", "optimizer", "oracle", "logger", "callback", "writer", "command"),
        *("features", "metric"),
    }


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        (Details(), ""),
        (Details(ge=0), "x>=0"),
        (Details(gt=0), "x>0"),
        (Details(le=1), "x<=1"),
        (Details(ge=0, le=1), "0<=x<=1"),
        (Details(gt=0, lt=1), "0<x<1"),
        (Details(ge=1, le=99_999), "1<=x<=99999"),
        (Details(ge=1, le=100_000), "x>=1"),  # a bound that only guards against absurd sizes
    ],
)
def test_ranges_read_as_one_expects(details: Details, shown: str) -> None:
    assert details.range == shown


@pytest.mark.parametrize(
    ("values", "name", "reason"),
    [
        ({"nope": 1}, "nope", "there is no such option"),
        ({"whol": 1}, "whol", "did you mean 'whole'?"),
        ({"whole": True}, "whole", "whole number"),
        ({"whole": "3"}, "whole", "whole number"),
        ({"whole": 1.5}, "whole", "whole number"),
        ({"whole": 11}, "whole", "less than or equal to 10, not 11"),
        ({"whole": -1}, "whole", "greater than or equal to 0, not -1"),
        ({"whole": None}, "whole", "whole number"),
        ({"real": "0.5"}, "real", "must be a number"),
        ({"real": True}, "real", "must be a number"),
        ({"real": math.nan}, "real", "finite"),
        ({"real": math.inf}, "real", "finite"),
        ({"real": -math.inf}, "real", "finite"),
        ({"real": 0.0}, "real", "greater than 0"),
        ({"real": 1.0}, "real", "less than 1"),
        ({"flag": 1}, "flag", "true or false"),
        ({"flag": "true"}, "flag", "true or false"),
        ({"text": 1.5}, "text", "must be text"),
        ({"choice": "c"}, "choice", "'a' or 'b'"),
        ({"maybe": 0}, "maybe", "greater than or equal to 1"),
        ({"many": [1, 0]}, "many", "greater than or equal to 1"),
        ({"many": {"a": 1}}, "many", "must be a list"),
        ({"many": ["1"]}, "many", "whole number"),
        ({"many": [1] * (LONGEST_TUPLE + 1)}, "many", "at most 64"),
        ({"pair": [1.0]}, "pair", ""),
        ({"pair": [1.0, 2.0, 3.0]}, "pair", ""),
        ({"pair": [1.0, math.nan]}, "pair", "finite"),
        ({"path": 3}, "path", ""),
        ({"text": object()}, "text", "not a plain value"),
        ({"copy": "x"}, "copy", "whole number"),
        ({"schema": 1.5}, "schema", "must be text"),
        ({"json": "x"}, "json", "true or false"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, object], name: str, reason: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        make(Everything, values)
    assert caught.value.field == name
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_a_required_option_must_be_given() -> None:
    with pytest.raises(InvalidOption, match="must: must be given"):
        make(Needed, {})
    assert make(Needed, {"must": 2}).must == 2


def test_good_values_arrive_with_their_types() -> None:
    given = {"real": 0.25, "many": [3], "pair": [1, 2], "path": "~/x", "copy": 9, "schema": "t", "json": False}
    record = make(Everything, {**given, "model_config": 4})
    assert record == Everything(
        real=0.25, many=(3,), pair=(1.0, 2.0), path=Path.home() / "x", copy=9, schema="t", json=False, model_config=4
    )
    assert isinstance(record.path, Path)
    assert isinstance(record.pair[0], float)
    assert make(Everything, {"many": [1] * LONGEST_TUPLE}).many == (1,) * LONGEST_TUPLE
    assert make(Everything, {"maybe": None}).maybe is None


def test_post_init_speaks_of_its_field() -> None:
    with pytest.raises(InvalidOption) as caught:
        make(Training, {"steps": 3, "epochs": 2})
    assert caught.value.field == "epochs"
    with pytest.raises(InvalidOption, match="checkpoint_every: must be a number of steps such as 500"):
        make(Training, {"checkpoint_every": "2 epochs"})
    with pytest.raises(InvalidOption, match="checkpoint_every: must be at least 1"):
        make(Training, {"checkpoint_every": "0ep"})

    class Odd(Options):
        a: int = option(default=1)

        def __post_init__(self) -> None:
            raise ValueError("nothing fits")

    with pytest.raises(InvalidOption) as caught:
        make(Odd, {})
    assert (caught.value.field, caught.value.reason) == ("", "nothing fits")


def _through_json(values: dict[str, Any]) -> Any:
    return json.loads(json.dumps(values))


def _through_toml(values: dict[str, Any]) -> Any:
    return tomllib.loads(dump_toml({"table": values}))["table"]


ROUNDS = [_through_json, _through_toml]


@pytest.mark.parametrize("through", ROUNDS)
def test_values_survive_files(through: Callable[[dict[str, Any]], Any]) -> None:
    for odd in ODD:
        for record in (Everything(text=odd), Everything(schema=odd, many=(), real=1e-12, pair=(-1e300, 5.0), maybe=4)):
            assert make(Everything, through(plain(record))) == record
    everything = Everything(path=Path("/a \\ b/😀"), flag=True, choice="b")
    assert make(Everything, through(plain(everything))) == everything


@pytest.mark.parametrize("through", ROUNDS)
def test_every_registered_component_survives_files(through: Callable[[dict[str, Any]], Any]) -> None:
    seen = 0
    for kind in {*KINDS} - {"command"}:  # whose values no file holds
        for name in registry().names(kind):
            component = registry().get(kind, name)
            needed = {f.name: (*get_args(f.inner), "/x")[0] for f in fields(component) if f.required}
            made = make(component, needed)
            assert make(component, through(plain(made))) == made
            seen += 1
    for settings in (Training, Sampling):
        assert make(settings, through(plain(make(settings, {})))) == settings()
    assert seen >= 15


def test_toml_keys_and_lists_survive() -> None:
    document = {"plugins": {"my.dist": "1", 'a"b': "2", "plain-1": "3"}, "t": {"l": ["\x7f", "é"], "e": [], "n": -0.5}}
    assert tomllib.loads(dump_toml(document)) == document
    nested = {"loggers": {"csv": {}, "my.dist:x": {"path": "/a b"}}, "none": {}, "both": {"a": 1, "b": {"c": True}}}
    assert tomllib.loads(dump_toml(nested)) == nested


def test_plain_leaves_out_none_and_makes_paths_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert "maybe" not in plain(Everything())
    assert plain(Everything(path=Path("data")))["path"] == str(tmp_path / "data")
    assert plain(Everything(many=(1, 2)))["many"] == [1, 2]


def test_suggestions() -> None:
    assert suggestion("widht", ["width", "depth"]) == "; did you mean 'width'?"
    assert suggestion("zzz", ["width", "depth"]) == ""


class _Fine(Dataset, name="fine"):
    def load(self, context): ...  # type: ignore[no-untyped-def]


def _hiding_a_method() -> type[Component]:
    class Bad(Spacing, name="bad"):
        levels: int = option(default=3)  # type: ignore[assignment]

    return Bad


def _hiding_an_inherited_name() -> type[Component]:
    class Bad(_Fine, name="bad"):
        default_backbone: str = option(default="mlp")  # type: ignore[misc]

    return Bad


def _bad_type() -> type[Component]:
    class Bad(_Fine, name="bad"):
        table: dict[str, int] = option(default=None)

    return Bad


def _mixed_tuple() -> type[Component]:
    class Bad(_Fine, name="bad"):
        pair: tuple[int, str] = option(default=(1, "x"))

    return Bad


def _numbers_in_a_literal() -> type[Component]:
    class Bad(_Fine, name="bad"):
        level: Literal[1, 2] = option(default=1)

    return Bad


def _default_of_another_type() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: int = option(default="3")

    return Bad


def _default_out_of_range() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: int = option(default=0, ge=1)

    return Bad


def _default_nan() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: float = option(default=math.nan)

    return Bad


def _bool_as_a_number() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: int = option(default=True)

    return Bad


def _default_none() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: int = option(default=None)

    return Bad


def _default_in_tuple_out_of_range() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: tuple[int, ...] = option(default=(1, 0), ge=1)

    return Bad


def _default_not_a_choice() -> type[Component]:
    class Bad(_Fine, name="bad"):
        mode: Literal["a", "b"] = option(default="c")

    return Bad


def _unresolvable() -> type[Component]:
    class Bad(_Fine, name="bad"):
        size: Nowhere = option(default=1)  # type: ignore[name-defined]  # noqa: F821

    return Bad


def _no_method() -> type[Component]:
    class Bad(Backbone, name="bad"):
        width: int = option(default=1)

    return Bad


def _nameless() -> type[Component]:
    class Bad(_Fine):
        pass

    return Bad


def _shouting() -> type[Component]:
    class Bad(_Fine, name="Bad Name"):
        pass

    return Bad


def _path_like() -> type[Component]:
    class Bad(_Fine, name="../x"):
        pass

    return Bad


def made(base: type[Component], **space: Any) -> Callable[[], type[Component]]:
    """A component of that base with what is in the space; annotations as a class has them."""

    def make_it() -> type[Component]:
        methods = {name: lambda self: None for name in ("load", "build", "sample", "open", "write", "run")}
        return type("Made", (base,), {"__doc__": "Made.", **methods, **space}, name="made")

    return make_it


def optioned(base: type[Component] = Command, **options: tuple[Any, Any]) -> Callable[[], type[Component]]:
    """A component with these options, each as (type, field)."""
    kinds = {name: kind for name, (kind, _) in options.items()}
    return made(base, __annotations__=kinds, **{name: value for name, (_, value) in options.items()})


MISFITS: dict[str, Callable[[], type[Component]]] = {
    "suffixes must be tuple[str, ...], not None": made(Writer, suffixes=None),
    "suffixes must be tuple[str, ...], not '.foo'": made(Writer, suffixes=".foo"),
    "suffixes must be tuple[str, ...], not ('.foo', 3)": made(Writer, suffixes=(".foo", 3)),
    "default_backbone must be str, not 5": made(Dataset, default_backbone=5),
    "default_prediction must be str, not None": made(NoiseSchedule, default_prediction=None),
    "default_steps must be int | None, not 'many'": made(Sampler, default_steps="many"),
    "training_defaults must be Mapping[str, object], not [1]": made(Backbone, training_defaults=[1]),
    "requires must be Mapping[str, str], not ['x']": made(Logger, requires=["x"]),
    "option 'flag' hides Sampler.flag": optioned(Sampler, flag=(bool, option(default=True))),
    "option 'a' has a short flag, which only options of commands can": optioned(
        Sampler, a=(int, option(default=1, short="-k"))
    ),
    "option 'a' is positional, which only options of commands can": optioned(
        Sampler, a=(int, option(default=1, positional=True))
    ),
    "has the flag --debug, which belongs to difftool": optioned(debug=(bool, False)),
    "has the flag --help, which belongs to difftool": optioned(help=(str, "")),
    "option '_' has a name from which no flag can be made": optioned(Sampler, _=(int, 1)),
}


@pytest.mark.parametrize(
    ("bad", "piece"),
    [
        (_hiding_a_method, "hides Spacing.levels"),
        (_hiding_an_inherited_name, "option 'default_backbone' hides Dataset.default_backbone"),
        (_bad_type, "option 'table' has a type that options cannot have"),
        (_mixed_tuple, "option 'pair' has a type that options cannot have"),
        (_numbers_in_a_literal, "option 'level' has a type that options cannot have"),
        (_default_of_another_type, "option 'size' has a default that it refuses: '3'"),
        (_default_out_of_range, "option 'size' has a default that it refuses: 0"),
        (_default_nan, "option 'size' has a default that it refuses: nan"),
        (_bool_as_a_number, "option 'size' has a default that it refuses: True"),
        (_default_none, "option 'size' has a default that it refuses: None"),
        (_default_in_tuple_out_of_range, "option 'size' has a default that it refuses: (1, 0)"),
        (_default_not_a_choice, "option 'mode' has a default that it refuses: 'c'"),
        (_unresolvable, "its annotations do not resolve"),
        (_no_method, "backbone 'bad': build() is not defined"),
        (_nameless, "name must be lower-case words joined by '-', not ''"),
        (_shouting, "not 'Bad Name'"),
        (_path_like, "not '../x'"),
        *((bad, piece) for piece, bad in MISFITS.items()),
    ],
)
def test_what_cannot_be_offered_is_told(bad: Callable[[], type[Component]], piece: str) -> None:
    assert piece in str(problem(bad()))


def test_an_option_without_annotation_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="'size' is a field but has no type annotation"):

        class Bad(_Fine, name="bad"):
            size = option(default=3)


def test_what_is_no_class_cannot_be_offered() -> None:
    for thing in (3, "x", int, _Fine(), None):
        assert "is not a component class" in str(problem(thing))


def test_every_type_of_option_can_be_offered() -> None:
    class Good(_Fine, name="good-2"):
        switch: bool = option(default=True)
        whole: int | None = option(default=None, ge=1)
        real: float = option(default=1)
        text: str = option()
        path: Path = option()
        choice: Literal["a"] = option(default="a")
        many: tuple[Literal["x", "y"], ...] | None = option(default=("x",))
        copy: int = option(default=1)
        schema: int = option(default=1)
        json: int = option(default=1)

    assert problem(Good) is None


def test_registered_components_have_help_and_no_problem() -> None:
    for kind in KINDS:
        for name in registry().names(kind):
            component = registry().get(kind, name)
            assert problem(component) is None
            assert component.__doc__
            assert not component.__doc__.startswith(f"{component.__name__}(")  # not dataclass's own text
            for f in fields(component):
                assert f.details.help, (name, f.name)


def test_the_python_door_names_kind_and_name() -> None:
    import difftool

    made = difftool.component("backbone", "mlp", width=8)
    assert plain(made)["width"] == 8
    with pytest.raises(UsageError, match=r"unknown kind 'backbon'; did you mean 'backbone'\?"):
        difftool.component("backbon", "mlp")
    with pytest.raises(UsageError, match=r"unknown backbone 'mpl'; did you mean 'mlp'\?"):
        difftool.component("backbone", "mpl")
    with pytest.raises(InvalidOption, match="widht: there is no such option; did you mean 'width'"):
        difftool.component("backbone", "mlp", widht=8)


def test_values_may_be_written_as_people_do() -> None:
    """In a file, one value stands for a list of one, and a whole number for text (`preview_every = 200`)."""
    unet = registry().of_kind(Backbone, "unet")
    assert make(unet, {"attention": "linear"}).attention == ("linear",)
    assert make(registry().of_kind(Dataset, "gradients"), {"size": 8}).item_shape() == (3, 8, 8)
    assert make(Training, {"preview_every": 200}).preview_every == "200"
