"""What the demo says in the end: the contract's one object for programs, tables for people."""

from collections.abc import Mapping, Sequence
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table

from verification.promises.answers import Tally
from verification.promises.finding import Finding
from verification.promises.promises import AUDIT, LEDGER, TOPICS, all_hold, breaches_of

_LATENCY_NOTE: Final = "from append to the final answer"


def summary(
    findings: Sequence[Finding],
    tally: Tally,
    exchange_orders: int,
    deposits_credited: int,
    faults: Mapping[str, int],
    more: Mapping[str, object],
) -> dict[str, object]:
    """The object that `demo --json` prints; `more` is added at its end."""
    return {
        "requests": tally.requests,
        "results_final": tally.results_final,
        "lost": breaches_of(findings, "lost"),
        "answered_twice": breaches_of(findings, "answered_twice") + breaches_of(findings, "one_answer_per_key"),
        "executed": tally.executed,
        "executed_twice": breaches_of(findings, "executed_twice") + breaches_of(findings, "paid_out_twice"),
        "rejected": tally.rejected,
        "rejected_by_reason": tally.rejected_by_reason,
        "duplicates": tally.duplicates,
        "withdrawals_completed": tally.withdrawals_completed,
        "deposits_credited": deposits_credited,
        "in_doubt": breaches_of(findings, "in_doubt"),
        "exchange_orders": exchange_orders,
        "faults_injected": dict(faults),
        "ledger_balanced": all_hold(findings, LEDGER),
        "audit_verified": all_hold(findings, AUDIT),
        "topic_matches_database": all_hold(findings, TOPICS),
        "seconds": round(tally.seconds, 2),
        "requests_per_second": round(tally.requests / tally.seconds, 1) if tally.seconds else 0.0,
        "p50_ms": tally.p50_ms,
        "p99_ms": tally.p99_ms,
        "promises": {finding.name: promise_row(finding) for finding in findings},
        **more,
    }


def promise_row(finding: Finding) -> dict[str, object]:
    """One promise for programs."""
    row: dict[str, object] = {"holds": finding.holds, "checked": finding.checked, "breaches": finding.breaches}
    if finding.examples:
        row["examples"] = list(finding.shown)
    if finding.skipped is not None:
        row["skipped"] = finding.skipped
    return row


def show(console: Console, figures: Mapping[str, object], findings: Sequence[Finding]) -> None:
    """The summary as tables."""
    table = Table(title="What happened", show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name in (
        "requests", "results_final", "executed", "rejected", "duplicates", "exchange_orders", "withdrawals_completed", "deposits_credited"
    ):  # fmt: skip
        table.add_row(name.replace("_", " "), f"{figures[name]:,}")
    table.add_row("requests per second", f"{figures['requests_per_second']}")
    table.add_row(f"median, 99th percentile, {_LATENCY_NOTE}", f"{figures['p50_ms']} ms, {figures['p99_ms']} ms")
    faults = figures["faults_injected"]
    if isinstance(faults, dict) and faults:
        table.add_row("faults injected", f"{sum(faults.values()):,}")
    console.print(table)
    show_promises(console, findings)


def show_promises(console: Console, findings: Sequence[Finding]) -> None:
    """One line per promise, and where it is broken."""
    table = Table(title="What was promised", title_justify="left")
    table.add_column("state")
    table.add_column("promise")
    table.add_column("checked", justify="right")
    table.add_column("broken", justify="right")
    for finding in findings:
        mark = "–" if finding.skipped else "PASS" if finding.holds else "FAIL"
        text = finding.claim if finding.skipped is None else f"{finding.claim} (not checked: {finding.skipped})"
        table.add_row(mark, text, f"{finding.checked:,}", f"{finding.breaches:,}" if finding.breaches else "")
    console.print(table)
    for finding in findings:
        for example in finding.shown:
            console.print(f"{finding.name}: {example}", markup=False, highlight=False, soft_wrap=True)


def to_line(figures: Mapping[str, object]) -> str:
    """One line of JSON."""
    return orjson.dumps(figures).decode()
