"""Fixtures that pytest knows wherever difftool is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from difftool.testing import PluginManager


@pytest.fixture
def plugin_manager() -> Iterator[PluginManager]:
    """A register with the built-ins alone, in which a test registers its own plugin; no other entry point is read.

    def test_it_is_found(plugin_manager):
        plugin = plugin_manager.register(my_package)
        assert not plugin.problems
        assert difftool.component("sampler", "mine")
    """
    from difftool.testing import PluginManager

    with PluginManager().active() as manager:
        yield manager
