"""`python -m cli`: the same as `shoal`."""

from cli.main import main

main()
