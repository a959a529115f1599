"""`python -m gesso` is `gesso`."""

from gesso.cli import main

main()
