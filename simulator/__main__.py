"""`python -m simulator`: see `options` for the command line."""

import sys

from simulator.options import parse
from simulator.server import run

if __name__ == "__main__":
    sys.exit(run(parse()))
