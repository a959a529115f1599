"""`python -m gesso` is `gesso`."""

from gesso.cli import main

if __name__ == "__main__":  # the processes of a parallel training import this, too
    main()
