"""The built-in plugins, registered exactly as a stranger's package is."""
