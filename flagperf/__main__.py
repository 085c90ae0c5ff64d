"""`python -m flagperf` is `flagperf`."""

from flagperf.cli import main

main()
