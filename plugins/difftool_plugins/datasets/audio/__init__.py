"""Sound files, for datasets of sounds."""
