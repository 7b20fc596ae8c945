"""Check components, and plugins as a whole, against their laws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

from difftool.components import Component
from difftool.errors import counted
from difftool.plugins.loading import Plugin
from difftool.testing.laws import Failed, Finding, KindLaws, Law, Skipped, name_of, raised, require


def laws_by_kind() -> Mapping[str, KindLaws]:
    """Return the laws of every kind that has laws of its own, beside those of every component."""
    # imported here, since all of them import torch
    from difftool.testing import (
        backbone_case,
        backbones,
        callbacks,
        codecs,
        commands,
        datasets,
        features,
        guidances,
        loggers,
        losses,
        metrics,
        objectives,
        optimizers,
        oracles,
        samplers,
        schedules,
        writers,
    )

    return {
        "dataset": KindLaws(datasets.LAWS, datasets.Case),
        "schedule": KindLaws(schedules.LAWS, schedules.prepare),
        "backbone": KindLaws(backbones.LAWS, backbone_case.prepare),
        "codec": KindLaws(codecs.LAWS, codecs.prepare),
        "sampler": KindLaws(samplers.LAWS, samplers.prepare),
        "spacing": KindLaws(samplers.SPACING_LAWS),
        "guidance": KindLaws(guidances.LAWS, guidances.prepare),
        "prediction": KindLaws(objectives.PREDICTION_LAWS),
        "loss": KindLaws(losses.LAWS, losses.prepare),
        "weighting": KindLaws(objectives.WEIGHTING_LAWS),
        "timestep-sampling": KindLaws(objectives.TIMESTEP_SAMPLING_LAWS),
        "optimizer": KindLaws(optimizers.LAWS),
        "oracle": KindLaws(oracles.LAWS),
        "logger": KindLaws(loggers.LAWS),
        "callback": KindLaws(callbacks.LAWS),
        "writer": KindLaws(writers.LAWS),
        "features": KindLaws(features.LAWS, features.Case.of),
        "metric": KindLaws(metrics.LAWS, metrics.Case.of),
        "command": KindLaws(commands.LAWS),
    }


def laws_of(kind: str) -> tuple[Law, ...]:
    """Return the laws of a kind: those of every component, then its own."""
    from difftool.testing import common

    return (*common.LAWS, *laws_by_kind().get(kind, KindLaws()).laws)


def examine(component: Component, *, shape: tuple[int, ...] | None = None) -> Iterator[Finding]:
    """Check a component against every law of its kind, one at a time.

    `shape` is the shape of the items that a backbone or codec is checked with.
    """
    from difftool.testing import common

    for common_law in common.LAWS:
        yield check_law(common_law, component)
    kind = laws_by_kind().get(component.kind, KindLaws())
    try:
        with undisturbed():
            subject = kind.prepare(component) if shape is None else kind.prepare(component, shape=shape)
    except (Failed, Skipped) as reason:
        yield Finding("can be checked", "failed" if isinstance(reason, Failed) else "skipped", str(reason))
        return
    causes: set[str] = set()
    for law in kind.laws:
        finding = check_law(law, subject)
        if finding.failed and finding.measured in causes:
            finding = Finding(finding.law, "skipped", "it fails for the same reason as above")
        elif finding.failed:
            causes.add(finding.measured)
        yield finding


def check_law(law: Law, subject: object) -> Finding:
    """Check one law. Anything that the component raises makes the law fail."""
    name = name_of(law)
    try:
        with undisturbed():
            return Finding(name, "passed", law(subject))
    except Skipped as reason:
        return Finding(name, "skipped", str(reason))
    except Failed as reason:
        return Finding(name, "failed", str(reason))
    except (Exception, SystemExit) as error:
        return Finding(name, "failed", raised(error))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run on one CPU thread, and restore the global random generators of torch, numpy and Python afterwards.

    The work is tiny, and its last digits should not depend on the number of cores.
    """
    import numpy as np
    import torch

    from difftool.devices import threads

    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        with threads(1), torch.random.fork_rng(devices=()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# ── plugins as a whole ──────────────────────────────────────────────────────────────────────────


def loads_completely(plugin: Plugin) -> str:
    """The plugin is loaded, difftool knows and calls its hooks, and none of its components is set aside."""
    if plugin.problems:
        raise Failed("; ".join(map(str, plugin.problems)))
    require(plugin.components, "it provides no component; put @difftool.hookimpl above its hooks")
    return counted(len(plugin.components), "component")


def loads_without_torch(plugin: Plugin) -> str:
    """Loading the plugin does not import torch, which would slow down every command and every `--help`."""
    if plugin.script is not None:
        raise Skipped("it is a script, which only the commands that name it load")
    if plugin.imports_torch:
        raise Failed(f"it imports torch and takes {plugin.seconds:.2f} s; import torch inside the methods that need it")
    return f"{1000 * plugin.seconds:.1f} ms"


PLUGIN_LAWS = (loads_completely, loads_without_torch)


def examine_plugin(plugin: Plugin) -> Iterator[Finding]:
    """Check a plugin against its laws, one at a time."""
    for law in PLUGIN_LAWS:
        yield check_law(law, plugin)
