"""Hold components, and plugins as a whole, to their laws."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from difftool import errors
from difftool.components import KINDS, Component
from difftool.testing.laws import Broken, Finding, Law, NotAsked, name_of

if TYPE_CHECKING:
    pass


def laws_of(kind: str) -> tuple[Law, ...]:
    """The laws of a kind, those of every component first."""
    from difftool.testing import common

    return (*common.LAWS, *_module(kind).LAWS)


def examine(component: Component, **about: object) -> Iterator[Finding]:
    """Hold a component to every law of its kind, one by one.

    `about` is what its laws are to be asked with, such as the shape of a backbone's items.
    """
    from difftool.testing import common

    for law in common.LAWS:
        yield hold(law, component)
    module = _module(component.kind)
    subject: Any = component
    if prepare := getattr(module, "subject", None):
        try:
            subject = prepare(component, **about)
        except Broken as error:
            yield Finding("can be examined", "broken", str(error))
            return
    reasons: set[str] = set()
    for law in module.LAWS:
        finding = hold(law, subject)
        if finding.broken and finding.measured in reasons:  # one cause is told once
            finding = Finding(finding.law, "not asked", "it fails as above")
        elif finding.broken:
            reasons.add(finding.measured)
        yield finding


def hold(law: Law, subject: object) -> Finding:
    """Ask one law, on one thread: the work is tiny, and its last digits should not depend on the machine.

    What it draws from the generators that a program shares changes nothing for whoever asked.
    """
    import torch

    from difftool.devices import threads

    name, state = name_of(law), random.getstate()
    try:
        with threads(1), torch.random.fork_rng(devices=()):
            return Finding(name, "kept", law(subject))
    except NotAsked as reason:
        return Finding(name, "not asked", str(reason))
    except Broken as broken:
        return Finding(name, "broken", str(broken))
    except (Exception, SystemExit) as error:
        return Finding(name, "broken", describe(error))
    finally:
        random.setstate(state)


def describe(error: BaseException) -> str:
    """What an unexpected exception says, and where in the author's code it was raised."""
    ours = [str(Path(__file__).parents[1]), *(str(Path(m.__file__).parent) for m in _libraries() if m.__file__)]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(tuple(ours))]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"raised {errors.describe(error)}{where}"


def _libraries() -> Iterator[ModuleType]:
    return (sys.modules[name] for name in ("torch", "numpy", "contextlib") if name in sys.modules)


def _module(kind: str) -> Any:
    modules = {"prediction": "objectives", **{k: f"{k.replace('-', '_')}s" for k in KINDS if k != "prediction"}}
    try:
        return import_module(f"difftool.testing.{modules[kind]}")
    except ModuleNotFoundError:
        return SimpleNamespace(LAWS=())
