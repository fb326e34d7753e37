"""`orchestrator verify`: every promise checked against a running installation, one line each.

Invariants:
1. Nothing is changed, and nothing is asked of a worker: topics, database and the exchange's own log are read. With `--halt` alone the
   workers are asked to halt everybody where a promise of the ledger, of what was paid out or credited, or of the audit trail is broken.
2. What is under way is no breach. The evidence cannot be read at one moment, so where something differs it is looked at again: only what
   is broken in the same way at every look counts.

Start with `run_verify`.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.access.installation import Installation
from cli.local.demo_report import promise_row, to_line
from cli.operate.halts import trip_all
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, say, wrapped, write_line
from embedded.services import Endpoints
from infra.settings import Settings
from simulator.records import LogDamaged
from verification.evidence.evidence import gather_evidence, gather_topic_trail
from verification.promises.finding import Finding, still_broken
from verification.promises.promises import AUDIT, DEPOSITS, LEDGER, PAYOUTS, UNDER_WAY, check_all
from verification.promises.trail import check_topic_trail

_LOOKS_MAX: Final = 4
_PAUSE_SECONDS: Final = 1.5


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """`exchange_log` is the simulated exchange's own log; without it the checks against the exchange's books are left out, and said so.

    `from_topic`: the audit trail is judged from `trade.audit` alone, without the database.
    """

    settings: Settings
    endpoints: Endpoints
    exchange_log: Path | None = None
    from_topic: bool = False
    # Where to ask for a halt; None: nobody is asked.
    halt: Installation | None = None
    as_json: bool = False


async def run_verify(options: VerifyOptions) -> int:
    """Checks and prints; returns the exit code, 1 when a promise is broken. Raises Retryable when a service is out of reach."""
    findings = await _topic_alone(options) if options.from_topic else await _everything(options)
    broken = [finding for finding in findings if not finding.holds and finding.name not in UNDER_WAY]
    if options.as_json:
        write_line(to_line({"holds": not broken, "promises": {finding.name: promise_row(finding) for finding in findings}}))
    else:
        for finding in findings:
            for line in _lines(finding):
                write_line("\n".join(wrapped(line, len("not checked  "))))
    grave = sorted(finding.name for finding in broken if finding.name in LEDGER | AUDIT | PAYOUTS | DEPOSITS)
    if options.halt is not None and grave:
        await _halt(options.halt, grave)
    return Exit.NOT_SO if broken else Exit.DONE


async def _halt(installation: Installation, broken: list[str]) -> None:
    if await trip_all(installation, f"`orchestrator verify` found broken: {', '.join(broken)}"):
        say("Trading is halted for everybody until an operator resumes it.")
        return
    raise CommandFailed(
        "No worker has halted trading in time, so it is NOT halted. Where no worker runs, nothing is sent either. Stop the workers to be "
        "sure, and see `orchestrator status`.",
        Exit.OUT_OF_REACH,
    )


async def _topic_alone(options: VerifyOptions) -> list[Finding]:
    return check_topic_trail(await gather_topic_trail(options.settings, options.endpoints.kafka_bootstrap_servers))


async def _everything(options: VerifyOptions) -> list[Finding]:
    findings: list[Finding] = []
    for look in range(_LOOKS_MAX):
        if look:
            await asyncio.sleep(_PAUSE_SECONDS)
        try:
            evidence = await gather_evidence(
                options.settings, options.endpoints.kafka_bootstrap_servers, options.endpoints.database_url, options.exchange_log
            )
        except OSError as error:
            raise CommandFailed(
                f"The exchange's own log {options.exchange_log} cannot be read: {error.strerror}. Nothing was checked and nothing changed. "
                "Name the file with --exchange-log.",
                Exit.USAGE,
            ) from error
        except LogDamaged as error:
            raise CommandFailed(
                f"The exchange's own log cannot be read: {error}. Nothing was checked and nothing changed.", Exit.OUT_OF_REACH
            ) from error
        now = check_all(evidence, at_rest=False)
        findings = still_broken(findings, now) if look else now
        if all(finding.holds or finding.name in UNDER_WAY for finding in findings):
            break
    return findings


def _lines(finding: Finding) -> list[str]:
    """One line for a promise, and one for each place where it is broken."""
    if finding.skipped is not None:
        return [f"not checked  {finding.name}: {finding.claim} ({finding.skipped})"]
    word = "PASS" if finding.holds else "under way" if finding.name in UNDER_WAY else "FAIL"
    count = f"{finding.breaches} of {finding.checked}" if finding.breaches else f"{finding.checked} checked"
    return [f"{word:<11}  {finding.name}: {finding.claim} ({count})", *(printable(f"             {text}") for text in finding.shown)]
