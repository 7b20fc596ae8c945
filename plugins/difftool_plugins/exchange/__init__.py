"""Models to and from other libraries. The commands `export` and `import` use it."""
