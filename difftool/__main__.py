"""`python -m difftool` is the same program, and takes no module from the current folder either."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, as the program will say
        here = ""
    if sys.path[0] == here:  # where `python -m` puts it
        del sys.path[0]

from difftool.cli.main import main

if __name__ == "__main__":
    main()
