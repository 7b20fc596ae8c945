"""Fixtures that pytest offers wherever difftool is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from difftool.testing import PluginManager


@pytest.fixture
def plugin_manager() -> Iterator[PluginManager]:
    """A register of the built-ins, to which a test adds its own plugin. Other installed plugins are ignored.

    def test_registration(plugin_manager):
        plugin = plugin_manager.register(my_package)
        assert not plugin.problems
        assert difftool.component("sampler", "mine")
    """
    from difftool.testing import PluginManager

    with PluginManager().active() as manager:
        yield manager
