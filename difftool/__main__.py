"""`python -m difftool` is the same program, and takes no module from the current folder either."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # where `python -m` puts it
    del sys.path[0]

from difftool.cli.main import main

if __name__ == "__main__":
    main()
