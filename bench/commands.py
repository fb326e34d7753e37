"""`python -m bench.commands`: how long the command line takes to answer, beside the bare libraries that it is made with.

Each round starts every command once in a process of its own; a ratio is taken within a round, and the median of all rounds is shown, with
the least and the greatest. The baseline is a process that imports `typer` and `typer.rich_utils`.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Final

_BASELINE: Final = ("-c", "import typer, typer.rich_utils")
_COMMANDS: Final = {
    "--help": ("-m", "cli", "--help"),
    "--version": ("-m", "cli", "--version"),
    "halt --help": ("-m", "cli", "halt", "--help"),
    "schema export": ("-m", "cli", "schema", "export"),
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """What a process took of the processor, in seconds. Raises CalledProcessError where it fails."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.commands", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args(arguments).rounds
    ratios: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(rounds):
        baseline = cpu_seconds(_BASELINE)
        for name, command in _COMMANDS.items():
            ratios[name].append(cpu_seconds(command) / baseline)
    print(f"times the baseline's processor time, {rounds} rounds: median (least to greatest)")
    for name, found in ratios.items():
        print(f"orchestrator {name:<16}{median(found):>6.2f} ({min(found):.2f} to {max(found):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
