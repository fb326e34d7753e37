"""What `doctor` says of the settings that keep a crash or a slow exchange from costing money: the database's commits, and the times that
must be over before an order in doubt counts as not executed.

Where they are sound the line shows them; a worker refuses real money with those that are not.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from agents.process.read_lags import lag_refusal, read_lags_of, timeout_refusal
from cli.terminal.findings import Finding, Findings
from infra.exchange.gateway import UnknownVenue
from infra.exchange.venues.registry import is_real_money, venue
from infra.postgres.durability import SETTINGS, durability_problems
from infra.settings import Settings

_MILLISECOND: Final = timedelta(milliseconds=1)
_MEANING: Final = {
    "fsync": "a power failure loses what was committed, and can break the database itself",
    "full_page_writes": "a power failure in the middle of a write breaks the page that was being written",
    "synchronous_commit": "a power failure loses what was committed. This system's own sessions turn it on for themselves; others do not",
}


def durability_findings(values: Mapping[str, str]) -> Findings:
    """Of the database's settings, by name, as a session that sets nothing has them."""
    problems = {problem.partition(" ")[0]: problem for problem in durability_problems(values)}
    if not problems:
        return [Finding.ok("durability", f"{', '.join(f'{name} {values[name]}' for name in SETTINGS)}: what is committed is on the disk")]
    remedy = "turn it on in postgresql.conf and reload: an order's intent must be on the disk before it is sent"
    return [Finding.problem("durability", f"{told}: {_MEANING[name]}", remedy) for name, told in problems.items()]


def check_waiting_times(settings: Settings) -> Findings:
    """Receive window, time-out and read lag, for each exchange that is known."""
    return [finding for exchange in settings.exchanges for finding in _of_exchange(settings, exchange)]


def _of_exchange(settings: Settings, exchange: str) -> Findings:
    check = f"waiting times {exchange}"
    try:
        row = venue(exchange)
    except UnknownVenue:
        # Its own check says so.
        return []
    lag = read_lags_of(settings)[exchange]
    known = (
        f"receive window {settings.receive_window_ms} ms (ORCHESTRATOR_RECEIVE_WINDOW_MS), time-out {settings.venue_timeout_ms} ms "
        f"(ORCHESTRATOR_VENUE_TIMEOUT_MS), read lag {lag // _MILLISECOND} ms (ORCHESTRATOR_VENUE_READ_LAG_MS)"
    )
    findings = []
    if settings.receive_window > row.receive_window_max:
        most = row.receive_window_max // _MILLISECOND
        detail = f"ORCHESTRATOR_RECEIVE_WINDOW_MS is {settings.receive_window_ms}, it takes {most} at most"
        findings.append(Finding.problem(check, detail, "lower it"))
    only = settings.model_copy(update={"exchanges": (exchange,)})
    short = [refusal for refusal in (timeout_refusal(only), lag_refusal(only)) if refusal is not None]
    url = settings.exchange_urls.get(exchange)
    if short and (not url or is_real_money(url)):
        findings += [Finding.problem(check, refusal.partition(" Nothing was read")[0], "raise it: workers refuse it") for refusal in short]
    if findings:
        return findings
    return [Finding.ok(check, known + ("; shorter than the real exchange needs, which a sandbox may have" if short else ""))]
