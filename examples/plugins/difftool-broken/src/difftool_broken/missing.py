"""Imports a library that is not installed."""

import difftool_has_no_such_dependency  # noqa: F401
