"""The one place that knows the versions."""

__version__ = "0.1.0"

API_VERSION = 2
"""Of what plugins rely on: the names that `difftool` exports and the hooks. It rises when a plugin would break, and not
when something is added; a plugin that needs what was added asks for a newer difftool in its dependencies."""

OLDEST_API = 2
"""Plugins made for older versions than this are set aside."""
