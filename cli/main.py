"""The `orchestrator` command: one function per sub-command, which imports what it needs when it runs.

Invariants:
1. `--help` and a usage error load neither an exchange's nor Kafka's nor the database's libraries: they answer at once.
2. A user's mistake or a service that is away ends with one message on standard error and an exit code of `output.Exit`, never a traceback.
   A traceback means a defect.

Start with `run`.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli.access.operator_options import Credentials, Reason, with_credentials
from cli.admin.administration_commands import balances_app, keys_app, limits_app, tokens_app, users_app
from cli.admin.approval_commands import approvals_app
from cli.admin.session_commands import sessions_app
from cli.operate.decision_commands import addresses_app, withdrawals_app
from cli.operate.doubt_commands import in_doubt_app
from cli.operate.offset_commands import offsets_app
from cli.operate.quarantine_commands import quarantine_app
from cli.show.deposit_commands import deposits_app
from cli.show.request_commands import order, orders, results, submit
from cli.terminal.ending import finish as _finish
from cli.terminal.output import CommandFailed, Exit, ReaderGone, say, write_line

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Trade requests on Kafka, executed on crypto exchanges exactly once.\n\n"
    "Exit codes: 0 done · 1 the thing asked about does not hold · 2 wrong usage · 3 a service is out of reach.",
)
schema_app = typer.Typer(no_args_is_help=True, help="The contract for programs.")
verify_app = typer.Typer()
app.add_typer(verify_app, name="verify")
app.add_typer(balances_app, name="balances")
app.add_typer(users_app, name="users")
app.add_typer(keys_app, name="keys")
app.add_typer(limits_app, name="limits")
app.add_typer(tokens_app, name="tokens")
app.add_typer(sessions_app, name="sessions")
app.add_typer(in_doubt_app, name="in-doubt")
app.add_typer(withdrawals_app, name="withdrawals")
app.add_typer(addresses_app, name="addresses")
app.add_typer(approvals_app, name="approvals")
app.add_typer(deposits_app, name="deposits")
app.add_typer(offsets_app, name="offsets")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(schema_app, name="schema")

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_User = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only this user.")]


class _Authentication(StrEnum):
    REQUIRED = "required"
    SANDBOX = "sandbox"


def _version(wanted: bool) -> None:
    if wanted:
        from pipeline.books.audit import SOFTWARE_VERSION  # noqa: PLC0415 — invariant 1

        write_line(f"orchestrator {SOFTWARE_VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")] = False,
) -> None:
    pass


@app.command()
def demo(
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many requests to publish.")] = 2_000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 2,
    kill: Annotated[bool, typer.Option("--kill", help="Kill and pause workers at random times, with exchange faults.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the requests and the faults.")] = 1,
    as_json: _AsJson = False,
) -> None:
    """Start everything, trade at a simulated exchange under load, check every promise, stop everything."""
    from cli.local.demo import DemoOptions, run_demo  # noqa: PLC0415 — invariant 1

    _finish(run_demo(DemoOptions(requests=requests, workers=workers, kill=kill, seed=seed, as_json=as_json)))


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 2,
    kafka_port: Annotated[int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="The embedded broker's port.")] = None,
    exchange_port: Annotated[int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="The simulated exchange's port.")] = None,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, metavar="PORT", help="Where worker 1 serves its health; worker n: PORT + n - 1.")
    ] = None,
    authentication: Annotated[
        _Authentication | None, typer.Option(help="Whether requests need tokens and codes. Else: not at the simulated exchange.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Run the services, a simulated exchange and workers until Ctrl-C, and print the addresses.

    Ports that are not given are the same as at the last start in this data directory.
    """
    from cli.local.up import UpOptions, run_up  # noqa: PLC0415 — invariant 1

    asked = None if authentication is None else authentication.value
    _finish(run_up(UpOptions(workers, kafka_port or 0, exchange_port or 0, web_port or 0, asked, as_json)))


@app.command()
def worker() -> None:
    """Run one worker against the configured services, until it is stopped."""
    from agents.process.worker import run_worker  # noqa: PLC0415 — invariant 1
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1

    installation = find_installation()
    raise typer.Exit(run_worker(installation.settings, installation.kafka, installation.database_url))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def simulator(context: typer.Context) -> None:
    """Run the simulated exchange alone; `orchestrator simulator --help` lists its options."""
    from cli.access.installation import data_directory, read_settings  # noqa: PLC0415 — invariant 1
    from simulator.options import parse  # noqa: PLC0415 — invariant 1
    from simulator.server import run as run_simulator  # noqa: PLC0415 — invariant 1

    books = data_directory(read_settings()) / "simulator"
    options = parse(["--data-dir", str(books), *context.args], "orchestrator simulator")
    raise typer.Exit(Exit.OUT_OF_REACH if run_simulator(options) else Exit.DONE)


for _command_of_requests in (submit, results, orders, order):
    app.command()(_command_of_requests)


@balances_app.callback(invoke_without_command=True)
def balances(context: typer.Context, user: _User = None, as_json: _AsJson = False) -> None:
    """List every account: posted, pending (held for orders) and available, in units of the asset. The book says whether it is real."""
    if context.invoked_subcommand is not None:
        return
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.show.orders import show_balances  # noqa: PLC0415 — invariant 1

    _finish(show_balances(find_installation(), user_id=user, as_json=as_json))


@verify_app.callback(invoke_without_command=True)
def verify(
    context: typer.Context,
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Judge the audit trail from Kafka alone.")] = False,
    exchange_log: Annotated[Path | None, typer.Option(metavar="FILE", help="A simulated exchange's log, where `up` runs none.")] = None,
    halt: Annotated[bool, typer.Option("--halt", help="Halt everybody when the ledger or the audit trail is broken.")] = False,
    as_json: _AsJson = False,
) -> None:
    """Check every promise: one line each; or see below."""
    if context.invoked_subcommand is not None:
        if from_topic or exchange_log or halt or as_json:
            raise typer.BadParameter(f"options of `verify` alone say nothing to `{context.invoked_subcommand}`: put its own behind it")
        return
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.check.verify import VerifyOptions, run_verify  # noqa: PLC0415 — invariant 1
    from embedded.services import Endpoints  # noqa: PLC0415 — invariant 1

    installation = find_installation()
    options = VerifyOptions(
        settings=installation.settings,
        endpoints=Endpoints(installation.kafka, "" if from_topic else installation.database_url),
        exchange_log=exchange_log or (installation.running.exchange_log if installation.running else None),
        from_topic=from_topic,
        halt=installation if halt else None,
        as_json=as_json,
    )
    _finish(run_verify(options))


@verify_app.command("balances")
def verify_balances(
    user: _User = None,
    exchange: Annotated[str | None, typer.Option("--exchange", metavar="ID", help="Only at this exchange.")] = None,
    as_json: _AsJson = False,
) -> None:
    """Compare the ledger with the exchanges' balances, now: one line for each asset that differs.

    Ends with 0 when nothing differs, 1 when something does, 3 when the database or an exchange did not answer.
    """
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.check.verify_balances import BalancesOptions, run_verify_balances  # noqa: PLC0415 — invariant 1

    _finish(run_verify_balances(find_installation(), BalancesOptions(user_id=user, exchange=exchange, as_json=as_json)))


_OnlyUser = Annotated[str | None, typer.Option("--user", metavar="ID", help="Only for this user.")]
_OnlySymbol = Annotated[str | None, typer.Option("--symbol", metavar="BASE/QUOTE", help="Only for this symbol.")]
_OnlyExchange = Annotated[str | None, typer.Option("--exchange", metavar="ID", help="Only at this exchange.")]
_CancelOpen = Annotated[
    bool, typer.Option("--cancel-open", help="Cancel what rests at the exchange and would not pass, while this is in force.")
]


def _command(
    word: str,
    scope: tuple[str | None, str | None, str | None],
    reason: str,
    cancel_open: bool,
    credentials: Credentials,
    as_json: bool,
) -> NoReturn:
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.operate.halts import CommandOptions, command, scope_of  # noqa: PLC0415 — invariant 1
    from schemas.commands import CommandWord  # noqa: PLC0415 — invariant 1

    named = scope_of(*scope)
    options = CommandOptions(CommandWord(word), *named, reason, cancel_open, credentials, as_json)
    _finish(command(find_installation(), options))


@app.command()
@with_credentials
def halt(
    reason: Reason,
    user: _OnlyUser = None,
    symbol: _OnlySymbol = None,
    exchange: _OnlyExchange = None,
    cancel_open: _CancelOpen = False,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Stop trading: nothing new is sent, for everybody, or for one user, symbol or exchange. Cancels still pass.

    Ends with 0 when it is in force, 1 when it was refused, 3 when no worker has applied it within 10 s.
    """
    _command("halt", (user, symbol, exchange), reason, cancel_open, credentials, as_json)


@app.command()
@with_credentials
def reduce(
    reason: Reason,
    user: _OnlyUser = None,
    symbol: _OnlySymbol = None,
    exchange: _OnlyExchange = None,
    cancel_open: _CancelOpen = False,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Let positions only be made smaller: sales into US dollars and cancels pass, nothing else. Exit codes as of `halt`."""
    _command("reduce", (user, symbol, exchange), reason, cancel_open, credentials, as_json)


@app.command()
@with_credentials
def resume(
    reason: Reason,
    user: _OnlyUser = None,
    symbol: _OnlySymbol = None,
    exchange: _OnlyExchange = None,
    as_json: _AsJson = False,
    *,
    credentials: Credentials,
) -> None:
    """Lift the halt of exactly this scope; those of other scopes stay. Exit codes as of `halt`."""
    _command("resume", (user, symbol, exchange), reason, False, credentials, as_json)


@app.command()
def status(as_json: _AsJson = False) -> None:
    """Show what is stopped, by whom and why, and orders in doubt, balances that differ, frozen users and locked second factors."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.check.status import show_status  # noqa: PLC0415 — invariant 1

    _finish(show_status(find_installation(), as_json=as_json))


@app.command()
def lag(as_json: _AsJson = False) -> None:
    """Show all that waits: records of each partition, and orders, cancels, payments and deposits, with who holds them up."""
    from cli.access.installation import find_installation  # noqa: PLC0415 — invariant 1
    from cli.show.lag import show_lag  # noqa: PLC0415 — invariant 1

    _finish(show_lag(find_installation(), as_json=as_json))


@app.command()
def doctor(as_json: _AsJson = False) -> None:
    """Check every dependency and setting, and say what to fix."""
    from cli.check.doctor import run_doctor  # noqa: PLC0415 — invariant 1

    _finish(run_doctor(as_json=as_json))


@schema_app.callback()
def _schema() -> None:
    pass


@schema_app.command("export")
def schema_export(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to write; else AsyncAPI goes to standard output.")] = None,
) -> None:
    """Write JSON Schema of every record, and an AsyncAPI 3.0 document of the topics."""
    from cli.check.schema_export import ASYNCAPI_NAME, documents, export  # noqa: PLC0415 — invariant 1

    if out is None:
        write_line(documents()[ASYNCAPI_NAME].rstrip("\n"))
        return
    for path in export(out):
        write_line(str(path))


def _expected(error: Exception) -> tuple[str, Exit] | None:
    """What to say about an error that is no defect; None for a defect."""
    from embedded.errors import ServicesError  # noqa: PLC0415 — invariant 1
    from pipeline.model.invariants import Retryable  # noqa: PLC0415 — invariant 1

    if isinstance(error, CommandFailed):
        return str(error), error.code
    if isinstance(error, ServicesError):
        return str(error), Exit.OUT_OF_REACH
    if isinstance(error, Retryable):
        return f"A service does not answer: {error}. Requests wait in Kafka. `orchestrator doctor` checks all of them.", Exit.OUT_OF_REACH
    return None


def run() -> NoReturn:
    """The entry point: runs the command line and ends the process with its exit code."""
    try:
        app(prog_name="orchestrator")
    except ReaderGone:
        # What is left in the buffer has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.READER_GONE)
    except Exception as error:
        expected = _expected(error)
        if expected is None:
            raise
        say(expected[0])
        sys.exit(expected[1])
    sys.exit(Exit.DONE)
