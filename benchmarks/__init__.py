"""What difftool costs beside what else there is: measured side by side, given as ratios.

`make bench` runs everything and writes docs/performance.md; `python -m benchmarks NAMES... --quick` tries a part of it.
"""
