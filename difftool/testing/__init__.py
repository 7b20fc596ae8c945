"""The law kit: tests for components, for use in the tests of a plugin.

    from difftool.testing import check_sampler
    from my_package import MySampler

    def test_laws():
        check_sampler(MySampler(eta=0.5))

Each `check_...` function takes a component, or a class that is then made with its defaults. It returns the findings, or
raises `LawsFailed`, which says for each failed law what was measured and what is required. `difftool check NAME` runs
the same laws on the command line.

`PluginManager`, and the pytest fixture `plugin_manager`, hold the built-ins and the plugins that a test registers, and
ignore every other installed plugin. `invoke` runs the command line in the current process.
"""

from __future__ import annotations

from difftool.components import Backbone, Component, Dataset, NoiseSchedule, Sampler
from difftool.testing.examine import examine, laws_of
from difftool.testing.laws import Finding, LawsFailed, instance
from difftool.testing.manager import Outcome, PluginManager, invoke

__all__ = [
    "Finding",
    "LawsFailed",
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


def check_component(component: Component | type[Component], *, shape: tuple[int, ...] | None = None) -> list[Finding]:
    """Check a component of any kind against the laws of that kind. Raises `LawsFailed`.

    `shape` is the shape of the items that a backbone or codec is checked with.
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    checked = instance(component)
    findings = list(examine(checked, shape=shape))
    if any(finding.failed for finding in findings):
        raise LawsFailed(checked, findings)
    return findings


def check_dataset(dataset: Dataset | type[Dataset]) -> list[Finding]:
    """Check that a dataset loads what it declares, the same each time, scaled for a network. Raises `LawsFailed`."""
    return check_component(dataset)


def check_schedule(schedule: NoiseSchedule | type[NoiseSchedule]) -> list[Finding]:
    """Check that a schedule falls strictly from data to noise, at every length. Raises `LawsFailed`."""
    return check_component(schedule)


def check_backbone(backbone: Backbone | type[Backbone], *, shape: tuple[int, ...] | None = None) -> list[Finding]:
    """Check that a network uses its inputs, learns, and can be saved and loaded. Raises `LawsFailed`.

    `shape` is the shape of one item, such as (3, 224, 224). By default it is the first of some small common shapes that
    the network accepts.
    """
    return check_component(backbone, shape=shape)


def check_sampler(sampler: Sampler | type[Sampler]) -> list[Finding]:
    """Check that a sampler reaches a known distribution with the order and the calls it claims. Raises `LawsFailed`."""
    return check_component(sampler)
