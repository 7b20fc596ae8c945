"""Raises an exception when it is imported."""

raise RuntimeError("no licence file found")
