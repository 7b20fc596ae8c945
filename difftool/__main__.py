"""`python -m difftool` is the same program."""

from difftool.cli.main import main

if __name__ == "__main__":
    main()
