"""The networks behind the built-in backbones. Importing them imports torch."""
