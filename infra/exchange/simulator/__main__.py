"""`python -m infra.exchange.simulator`: see `options` for the command line."""

import sys

from infra.exchange.simulator.options import parse
from infra.exchange.simulator.server import run

if __name__ == "__main__":
    sys.exit(run(parse()))
