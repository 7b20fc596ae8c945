"""The version of difftool and that of its plugin API."""

__version__ = "0.1.0"

API_VERSION = 2
"""The version of the API for plugins: the names that `difftool` exports, and the hooks.

It rises when a change would break plugins, and not for an addition; a plugin that needs an addition requires a newer
difftool in its dependencies."""

OLDEST_API = 2
"""The oldest API version that still works; plugins for older ones are set aside."""
