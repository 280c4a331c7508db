"""`python -m flowdiff <command> …`, the same as `flowdiff <command> …`."""

from flowdiff.cli import main

main()
