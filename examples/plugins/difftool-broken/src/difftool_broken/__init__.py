"""Modules that are wrong, each in a way of its own; the README says how difftool takes them."""
