"""Modules that are broken, each in its own way. The README says what difftool does with them."""
