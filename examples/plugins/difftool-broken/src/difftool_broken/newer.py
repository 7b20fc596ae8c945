"""Requires a future version of the plugin API."""

difftool_api = 99
