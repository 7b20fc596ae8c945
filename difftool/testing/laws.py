"""How components are held to laws.

A law is a function: its name says what must hold, its docstring how that is found out. It returns what it measured, and
raises `Broken` with what was measured and what was due, or `NotAsked` where it does not apply. A kind's laws are in
the module named after it, those of every one in `common`.
"""

from __future__ import annotations

import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from difftool import errors
from difftool.components import Component
from difftool.options import make

if TYPE_CHECKING:
    import torch

Law = Callable[[Any], str]


class Broken(AssertionError):
    """A law does not hold: what was measured, and what was due."""


class NotAsked(Exception):
    """A law does not apply, or cannot be asked here."""


@dataclass(frozen=True)
class Finding:
    """What became of one law."""

    law: str
    """Such as `has the order it claims`."""
    verdict: Literal["kept", "broken", "not asked"]
    measured: str

    @property
    def broken(self) -> bool:
        return self.verdict == "broken"


class BrokenLaws(AssertionError):
    """A component breaks laws; the text names each, and by how much."""

    def __init__(self, component: Component, findings: list[Finding]) -> None:
        self.component, self.findings = component, findings
        broken = [finding for finding in findings if finding.broken]
        rows = "".join(f"\n  {finding.law}: {finding.measured}" for finding in broken)
        count = f"{len(broken)} law{'s' if len(broken) > 1 else ''} of {len(findings)}"
        super().__init__(f"{component.kind} {component.name} breaks {count}:{rows}")


def laws_of(kind: str) -> tuple[Law, ...]:
    """The laws of a kind, those of every component first."""
    from difftool.testing import common

    return (*common.LAWS, *_module(kind).LAWS)


def name_of(law: Law) -> str:
    """`has_the_order_it_claims` as words."""
    return law.__name__.replace("_", " ")


def text_of(law: Law) -> str:
    """How it is found out, on one line."""
    return " ".join((inspect.getdoc(law) or "").split())


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
        return Finding(name, "broken", told(error))
    finally:
        random.setstate(state)


def told(error: BaseException) -> str:
    """What an unexpected exception says, and where in the author's code it was raised."""
    ours = [str(Path(__file__).parents[1]), *(str(Path(m.__file__).parent) for m in _libraries() if m.__file__)]
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(tuple(ours))]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"raised {errors.told(error)}{where}"


def _libraries() -> Iterator[ModuleType]:
    return (sys.modules[name] for name in ("torch", "numpy", "contextlib") if name in sys.modules)


def accelerators() -> list[torch.device]:
    """The devices here beside the CPU. Raises `NotAsked` where there is none."""
    import torch

    from difftool.devices import available

    found = [torch.device(name) for name in available() if name != "cpu"]
    if not found:
        raise NotAsked("there is no accelerator here")
    return found


def made(component: Component | type[Component]) -> Component:
    """A component as it is, or a class with its defaults. Raises `InvalidOption` where an option must be given."""
    return component if isinstance(component, Component) else make(component, {})


def _module(kind: str) -> Any:
    return import_module(f"difftool.testing.{kind}s")
