"""`python -m innkeeper.daemon`: what the command line starts in the background."""

import argparse
import sys

from innkeeper.daemon.main import Options, main

parser = argparse.ArgumentParser(prog="innkeeper.daemon")
parser.add_argument("--state")
parser.add_argument("--tcp")
parser.add_argument("--take-over", action="store_true")
parser.add_argument("--report-fd", type=int)
given = parser.parse_args()
sys.exit(main(Options(given.state, given.tcp, given.take_over, given.report_fd)))
