"""The parts that datasets of images share: find the files, read them, and change them at random."""
