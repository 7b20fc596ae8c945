"""Was made for a difftool of the future."""

difftool_api = 99
