"""The networks behind the built-in backbones; importing them imports torch."""
