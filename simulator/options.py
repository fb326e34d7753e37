"""What a simulated exchange is started with."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Final

from simulator.prices import TapeMode

PORT_MAX: Final = 65_535
_MILLISECONDS_MAX: Final = 24 * 3_600_000
_AMOUNT: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,18})?")


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """See `parse` for each option's meaning. Times in milliseconds, `notional_min` in USDT."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    tape: Path | None = None
    tape_symbol: str = "BTCUSDT"
    tape_mode: TapeMode = TapeMode.PER_ORDER
    tape_speed: Decimal = Decimal(1)
    walk_ms: int = 250
    seed: int = 0
    venue_timeout_ms: int = 10_000
    receive_window_ms_max: int = 60_000
    notional_min: Decimal = Decimal(5)
    fill_steps: int = 1
    withdrawal_ms: int = 500
    deposit_ms: int = 500
    withdrawal_fee: Decimal = Decimal(0)
    distance_ms: int = 0
    parent_pipe: bool = False


def parse(arguments: Sequence[str] | None = None, program: str = "python -m simulator") -> SimulatorOptions:
    """Reads the command line; a wrong option ends the process with status 2 and a message. `program` is its name in messages."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="A simulated exchange with Binance's spot REST API. Prints one line of JSON with its address when it is ready.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="where its books lie; made if absent, taken up again if present")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_whole(0, PORT_MAX), default=0, help="port to listen on; 0 takes a free one")
    add("--tape", type=Path, help="CSV of recorded trades: timestamp,trade_id,price,quantity,side")
    add("--tape-symbol", default="BTCUSDT", help="the symbol whose price the tape gives")
    add(
        "--tape-mode",
        type=TapeMode,
        choices=list(TapeMode),
        default=TapeMode.PER_ORDER,
        help="per-order: each accepted order of the symbol takes the next row's price; step: POST /simulator/tape/step; clock: real time",
    )
    add("--tape-speed", type=_amount, default=Decimal(1), help="clock mode: seconds of tape per second")
    add("--walk-ms", type=_whole(0, _MILLISECONDS_MAX), default=250, help="how often the other prices move; 0 keeps them still")
    add("--seed", type=_whole(0, 2**63 - 1), default=0, help="seed of the random walks")
    add("--venue-timeout-ms", type=_whole(0, _MILLISECONDS_MAX), default=10_000, help="no order is accepted later after it arrived")
    add("--receive-window-ms-max", type=_whole(1, _MILLISECONDS_MAX), default=60_000, help="the widest recvWindow")
    add("--notional-min", type=_amount, default=Decimal(5), help="smallest order value, in USDT")
    add("--fill-steps", type=_whole(1, 1_000), default=1, help="in how many steps a resting order fills when the price crosses it")
    add("--withdrawal-ms", type=_whole(0, _MILLISECONDS_MAX), default=500, help="how long a withdrawal is under way")
    add("--deposit-ms", type=_whole(0, _MILLISECONDS_MAX), default=500, help="how long until a deposit is credited")
    add("--withdrawal-fee", type=_amount, default=Decimal(0), help="what it keeps of each withdrawal, in units of the asset")
    add("--distance-ms", type=_whole(0, _MILLISECONDS_MAX), default=0, help="how long a request and its answer travel, together")
    add("--parent-pipe", action="store_true", help="stop when standard input ends, too")
    found = parser.parse_args(arguments)
    if found.tape_speed == 0:
        parser.error("argument --tape-speed: must be above zero")
    return SimulatorOptions(**vars(found))


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within bounds. The kernel, for one, would take a port above 65535 modulo 65536, and listen somewhere else."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 20 and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return int(text)

    return read


def _amount(text: str) -> Decimal:
    """Reads a decimal number, zero or more. Decimal itself would take NaN and infinity too."""
    if not _AMOUNT.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no decimal number, zero or more")
    return Decimal(text)


def to_arguments(options: SimulatorOptions) -> list[str]:
    """The command line that `parse` reads back as the same options, without `--parent-pipe`."""
    found: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name != "parent_pipe" and value is not None:
            found += [f"--{field.name.replace('_', '-')}", str(value)]
    return found
