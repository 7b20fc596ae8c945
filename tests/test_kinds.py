"""A kind of component is declared in one place, its base class, and everything else follows from that."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from difftool import Component, hookimpl, hookspecs, option
from difftool.components import KINDS
from difftool.testing import Outcome, PluginManager, invoke


def test_every_kind_has_its_hook_and_every_hook_its_kind() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("difftool_")}
    missing = {base.hook for base in KINDS.values()} - hooks
    assert not missing, f"difftool/hookspecs.py does not declare {', '.join(missing)}"
    assert hooks == {base.hook for base in KINDS.values()}


def test_declarations_do_not_collide() -> None:
    for values in ([b.kind for b in KINDS.values()], [b.hook for b in KINDS.values()]):
        assert len(set(values)) == len(values)
    flags = [base.flag for base in KINDS.values() if base.flag is not None]
    assert len(set(flags)) == len(flags)


class Tint(Component):
    """The tint of the walls."""

    kind, hook, flag = "wall-tint", "difftool_wall_tints", "--wall-tint"
    commands = ("train",)
    default = "plain"


class Plain(Tint, name="plain"):
    """One tint for all walls."""

    strength: int = option(default=3, ge=0, help="percent of pigment")


@pytest.fixture
def with_tints(monkeypatch: pytest.MonkeyPatch, plugin_manager: PluginManager, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(KINDS, Tint.kind, Tint)
    monkeypatch.setattr(hookspecs, Tint.hook, hookspecs.hookspec(lambda: None), raising=False)
    plugin = plugin_manager.register(SimpleNamespace(difftool_wall_tints=hookimpl(lambda: [Plain])))
    assert plugin.problems == []


def passed(*arguments: object) -> Outcome:
    outcome = invoke(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


TRAIN = ("train", "--dataset.n", 100, "--backbone.width", 8, "--batch-size", 16, "--preview-every", 0)


@pytest.mark.usefixtures("with_tints")
def test_an_added_kind_has_its_flag_options_table_and_list() -> None:
    text = " ".join(passed("train", "--help").out.split())
    assert "--wall-tint " in text
    assert "The tint of the walls. [default: plain]" in text
    assert "--wall-tint.strength" in text
    assert json.loads(passed("list", "wall-tints", "--json").out)["wall-tints"]["plain"]["options"]["strength"]
    assert "0 failed" in passed("check", "plain").out


@pytest.mark.usefixtures("with_tints")
def test_an_added_kind_is_recorded_and_survives_a_resume() -> None:
    passed(*TRAIN, "--steps", 2, "--wall-tint.strength", 5, "--out", "run")
    passed("train", "--resume", "run", "--steps", 4)
    table = tomllib.loads(Path("run/config.toml").read_text())["wall-tint"]
    assert table == {"name": "plain", "strength": 5}
    refused = invoke("train", "--resume", "run", "--wall-tint.strength", 6)
    assert refused.code == 1
    assert "--wall-tint.strength is 5 in the run, not 6" in refused.err
    passed(*TRAIN, "--steps", 2, "--config", "run/config.toml", "--out", "again")
    assert tomllib.loads(Path("again/config.toml").read_text())["wall-tint"] == table
    wrong = invoke(*TRAIN, "--wall-tint", "plane")
    assert (wrong.code, "did you mean 'plain'?" in wrong.err) == (2, True)


PAGE = Path(__file__).parents[1] / "docs" / "components.md"


def page() -> str:
    """The page of all built-in components, which `website` makes for its site too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PAGE.parents[1])  # it is no part of what is installed
        from website.kinds import overview

        return overview()


@pytest.mark.skipif(not PAGE.parent.is_dir(), reason="needs the checkout")
def test_the_page_of_components_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python tests/test_kinds.py writes it anew"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
