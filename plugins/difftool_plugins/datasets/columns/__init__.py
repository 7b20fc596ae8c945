"""The conditions that come with items: captions, classes, and images."""
