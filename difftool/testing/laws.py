"""How components are held to laws.

A law is a function: its name says what must hold, its docstring how that is found out. It returns what it measured, and
raises `Broken` with what was measured and what was due, or `NotAsked` where it does not apply. A kind's laws are in
the module named after it, those of every one in `common`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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


def name_of(law: Law) -> str:
    """`has_the_order_it_claims` as words."""
    return law.__name__.replace("_", " ")


def text_of(law: Law) -> str:
    """How it is found out, on one line."""
    return " ".join((inspect.getdoc(law) or "").split())


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
