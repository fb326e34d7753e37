"""What a simulated exchange is started with."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path

from infra.exchange.simulator.prices import TapeMode


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


def parse(arguments: Sequence[str] | None = None, program: str = "python -m infra.exchange.simulator") -> SimulatorOptions:
    """Reads the command line; a wrong option ends the process with status 2 and a message. `program` is its name in messages."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="A simulated exchange with Binance's spot REST API. Prints one line of JSON with its address when it is ready.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="where its books lie; made if absent, taken up again if present")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    add("--tape", type=Path, help="CSV of recorded trades: timestamp,trade_id,price,quantity,side")
    add("--tape-symbol", default="BTCUSDT", help="the symbol whose price the tape gives")
    add(
        "--tape-mode",
        type=TapeMode,
        choices=list(TapeMode),
        default=TapeMode.PER_ORDER,
        help="per-order: each accepted order of the symbol takes the next row's price; step: POST /simulator/tape/step; clock: real time",
    )
    add("--tape-speed", type=Decimal, default=Decimal(1), help="clock mode: seconds of tape per second")
    add("--walk-ms", type=int, default=250, help="how often the other prices move; 0 keeps them still")
    add("--seed", type=int, default=0, help="seed of the random walks")
    add("--venue-timeout-ms", type=int, default=10_000, help="an order is never accepted later than this after it arrived")
    add("--receive-window-ms-max", type=int, default=60_000, help="the widest recvWindow")
    add("--notional-min", type=Decimal, default=Decimal(5), help="smallest order value, in USDT")
    add("--fill-steps", type=int, default=1, help="in how many steps a resting order fills when the price crosses it")
    add("--withdrawal-ms", type=int, default=500, help="how long a withdrawal is under way")
    add("--deposit-ms", type=int, default=500, help="how long until a deposit is credited")
    add("--withdrawal-fee", type=Decimal, default=Decimal(0), help="what it keeps of each withdrawal, in units of the asset")
    add("--distance-ms", type=int, default=0, help="how long a request and its answer travel, together")
    add("--parent-pipe", action="store_true", help="stop when standard input ends, too")
    found = parser.parse_args(arguments)
    negative = min(found.walk_ms, found.venue_timeout_ms, found.distance_ms, found.notional_min, found.withdrawal_fee) < 0
    if negative or found.fill_steps < 1 or found.tape_speed <= 0:
        parser.error("times, --notional-min and --withdrawal-fee must not be negative, --fill-steps and --tape-speed must be above zero")
    return SimulatorOptions(**vars(found))


def to_arguments(options: SimulatorOptions) -> list[str]:
    """The command line that `parse` reads back as the same options, without `--parent-pipe`."""
    found: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name != "parent_pipe" and value is not None:
            found += [f"--{field.name.replace('_', '-')}", str(value)]
    return found
