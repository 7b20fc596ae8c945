"""What a plugin author tests a component with: the laws that every component keeps.

    from difftool.testing import check_sampler
    from my_package import MySampler

    def test_it_keeps_the_laws():
        check_sampler(MySampler(eta=0.5))

Each `check_...` takes a component, or a class to be made with its defaults, and raises `BrokenLaws`, which says of each
broken law what was measured and what was due. `difftool check NAME` asks the same laws. `PluginManager`, or the pytest
fixture `plugin_manager`, gives a register in which nothing but the built-ins and one's own plugin is found.
"""

from __future__ import annotations

from difftool.components import Backbone, Component, Dataset, NoiseSchedule, Sampler
from difftool.testing.examine import examine, laws_of
from difftool.testing.laws import BrokenLaws, Finding, made
from difftool.testing.manager import Outcome, PluginManager, invoke

__all__ = [
    "BrokenLaws",
    "Finding",
    "Outcome",
    "PluginManager",
    "check_backbone",
    "check_component",
    "check_dataset",
    "check_sampler",
    "check_schedule",
    "examine",
    "invoke",
    "laws_of",
]


def check_component(component: Component | type[Component]) -> list[Finding]:
    """Hold a component of any kind to the laws of its kind. Raises `BrokenLaws`; returns what was found."""
    return _hold(component)


def check_dataset(dataset: Dataset | type[Dataset]) -> list[Finding]:
    """Hold a dataset to its laws: it loads what it says, the same each time, in a scale that a network can learn."""
    return _hold(dataset)


def check_schedule(schedule: NoiseSchedule | type[NoiseSchedule]) -> list[Finding]:
    """Hold a schedule to its laws: signal falls strictly, from clean to noise, for every number of timesteps."""
    return _hold(schedule)


def check_backbone(backbone: Backbone | type[Backbone], *, shape: tuple[int, ...] | None = None) -> list[Finding]:
    """Hold a backbone to its laws: shapes, labels and time are taken, it learns, and comes back from a file.

    `shape` is that of an item, such as (3, 224, 224); without it the smallest of some usual ones that fits is taken.
    """
    return _hold(backbone, shape=shape)


def check_sampler(sampler: Sampler | type[Sampler]) -> list[Finding]:
    """Hold a sampler to its laws: it reaches a known distribution, in the order and the calls that it claims."""
    return _hold(sampler)


def _hold(component: Component | type[Component], **about: object) -> list[Finding]:
    __tracebackhide__ = True  # pytest shows the line that asked
    one = made(component)
    findings = list(examine(one, **about))
    if any(finding.broken for finding in findings):
        raise BrokenLaws(one, findings)
    return findings
