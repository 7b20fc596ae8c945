"""The version of difftool and that of its plugin API."""

__version__ = "0.2.0"

API_VERSION = 2
"""The version of the API for plugins: the names that `difftool` exports, and the hooks.

It rises when a change would break plugins, and not for an addition; a plugin that needs an addition requires a newer
difftool in its dependencies."""

OLDEST_API = max(2, API_VERSION - 1)
"""The oldest API version that still works: the one before the present one, but none of before difftool 0.2.

Whoever raises `API_VERSION` also adapts what plugins of the former version bring. Plugins for older ones are set
aside."""
