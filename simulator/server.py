"""The process: opens the books, listens, moves the prices, stops cleanly.

Order of a start: lock and read the log → rebuild the state → load the keys → listen → say where. Order of a stop: stop listening, let
the requests end, write what is left, let go of the lock.

Start at `run`.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable

import orjson
import uvloop
from aiohttp import web

from simulator.exchange import Exchange, Rules
from simulator.faults import Faults
from simulator.journal import DataDirectoryInUse, Journal
from simulator.ledger import InvariantViolation
from simulator.options import SimulatorOptions
from simulator.prices import Tape, TapeMode, TapeUnreadable, Walk, read_tape
from simulator.records import LogDamaged
from simulator.signing import KeyStore
from simulator.symbols import make_symbols
from simulator.wire import Wire, now_us

SHUTDOWN_SECONDS = 2.0
FUNDING_SECONDS = 0.05
CLOCK_TAPE_SECONDS = 0.02


class _Process:
    """One run: `stopping` ends it, `failure` is why it ended badly."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self.rules = Rules(
            symbols=make_symbols(options.notional_min),
            venue_timeout_ms=options.venue_timeout_ms,
            fill_steps=options.fill_steps,
            tape=None if options.tape is None else read_tape(options.tape, options.tape_symbol),
            tape_mode=options.tape_mode,
            withdrawal_fee=options.withdrawal_fee,
        )
        if options.tape_symbol not in self.rules.symbols:
            raise TapeUnreadable(f"--tape-symbol {options.tape_symbol} is no symbol of the exchange")

    def fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.stopping.set()

    def ended(self, task: asyncio.Task[None]) -> None:
        """A background task that ends with an error ends the process: without it the exchange would be half alive."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    async def walk(self, exchange: Exchange) -> None:
        tape = self.rules.tape
        walked = [symbol for symbol in self.rules.symbols.values() if tape is None or symbol.name != tape.symbol]
        walks = {symbol.name: Walk(symbol, self.options.seed) for symbol in walked}
        while True:
            await asyncio.sleep(self.options.walk_ms / 1000)
            for name, walk in walks.items():
                exchange.move_price(name, walk.step(exchange.prices[name]), now_us())
            if tape is not None:
                # The tape's price moves in its own way; what rests and is crossed still fills step by step.
                exchange.sweep(tape.symbol, now_us())

    async def follow_tape(self, exchange: Exchange, tape: Tape) -> None:
        begin_us = now_us()
        number = 0
        while True:
            await asyncio.sleep(CLOCK_TAPE_SECONDS)
            target = tape.number_at(int((now_us() - begin_us) * self.options.tape_speed))
            # Every row counts for what rests in the book; a jump of more than one whole tape is cut.
            for row in range(max(number + 1, target - len(tape.rows)), target + 1):
                exchange.tape_row = row
                exchange.move_price(tape.symbol, tape.row(row).price, now_us())
            number = max(number, target)

    async def advance_funding(self, exchange: Exchange) -> None:
        while True:
            await asyncio.sleep(FUNDING_SECONDS)
            exchange.funding.advance(now_us(), self.options.withdrawal_ms, self.options.deposit_ms)

    def background(self, exchange: Exchange) -> list[asyncio.Task[None]]:
        jobs = [self.advance_funding(exchange)]
        if self.options.walk_ms > 0:
            jobs.append(self.walk(exchange))
        if self.rules.tape is not None and self.rules.tape_mode is TapeMode.CLOCK:
            jobs.append(self.follow_tape(exchange, self.rules.tape))
        tasks = [asyncio.create_task(job) for job in jobs]
        for task in tasks:
            task.add_done_callback(self.ended)
        return tasks


def _watch_parent(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Calls `stop` when standard input ends. A thread, because standard input may be a file that no loop can watch."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=watch, name="parent-pipe", daemon=True).start()


async def _serve(options: SimulatorOptions, ready: Callable[[str], None]) -> BaseException | None:
    process = _Process(options)
    journal, records = Journal.open(options.data_dir, process.fail)
    exchange = Exchange(process.rules, journal.append)
    for record in records:
        exchange.apply(record)
    exchange.recover(now_us())
    keys = KeyStore(options.data_dir)
    faults = Faults(options.data_dir)
    wire = Wire(
        exchange,
        keys,
        faults,
        journal,
        receive_window_ms_max=options.receive_window_ms_max,
        stopping=process.stopping,
        distance_ms=options.distance_ms,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    if options.parent_pipe:
        _watch_parent(loop, process.stopping.set)
    writer = asyncio.create_task(journal.run())
    writer.add_done_callback(process.ended)
    tasks = process.background(exchange)
    runner = web.ServerRunner(web.Server(wire.answer, access_log=None), shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=1024)
        await site.start()
        host, port = runner.addresses[0][:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        await process.stopping.wait()
    finally:
        await runner.cleanup()
        for task in tasks:
            task.cancel()
        journal.stop()
        await asyncio.gather(writer, *tasks, return_exceptions=True)
        faults.close()
        journal.close()
    return process.failure


def _announce(url: str) -> None:
    sys.stdout.write(orjson.dumps({"url": url}).decode() + "\n")
    sys.stdout.flush()


def run(options: SimulatorOptions, ready: Callable[[str], None] = _announce) -> int:
    """Runs the simulated exchange until SIGTERM or SIGINT (or the end of standard input, where the options say so).

    `ready` gets the base address once it listens. Returns the exit status: 0 after a clean stop, 1 where it could not start or its
    books could not be kept, with a message on standard error.
    """
    try:
        failure = uvloop.run(_serve(options, ready))
    except (DataDirectoryInUse, LogDamaged, TapeUnreadable, InvariantViolation, OSError) as error:
        sys.stderr.write(f"the simulated exchange could not start: {error}\n")
        return 1
    if failure is not None:
        sys.stderr.write(f"the simulated exchange stopped because its books could not be kept: {failure!r}\n")
        return 1
    return 0
