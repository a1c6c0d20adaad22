"""Makes `python -m trsr` the same as `trsr`."""

from trsr.cli import main

main()
