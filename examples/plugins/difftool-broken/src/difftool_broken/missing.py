"""Needs a library that nobody has installed."""

import difftool_has_no_such_dependency  # noqa: F401
