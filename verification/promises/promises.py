"""All promises at once: the evidence, every finding about it, and the summary that `demo --json` prints."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pipeline.model.order import Order
from pipeline.model.withdrawal import Withdrawal
from verification.promises.accounts import Accounts, check_accounts, owned_at_exchange
from verification.promises.answers import Answers, Requested, check_answers
from verification.promises.books import ExchangeBooks, books_missing, check_books
from verification.promises.dead_letters import DeadLetters, check_dead_letters
from verification.promises.deposits import Deposited, check_booked_deposits, check_deposits, deposits_missing, lagging_users
from verification.promises.finding import Finding
from verification.promises.payouts import check_payouts, in_flight_users, payouts_missing
from verification.promises.progress import PartitionProgress, check_progress
from verification.promises.sessions import SessionCount, check_sessions
from verification.promises.snapshots import check_state
from verification.promises.trail import DatabaseTrail, TopicTrail, check_trail

LEDGER: Final = frozenset(
    {
        "ledger_sums_to_zero", "balances_match_transfers", "holds_match_orders", "nothing_negative", "balances_match_exchange",
        "deposits_match_transfers",
    }
)  # fmt: skip
PAYOUTS: Final = frozenset({"paid_out_twice", "paid_out_unasked", "payouts_match_exchange"})
DEPOSITS: Final = frozenset({"deposits_match_transfers", "announcements_match_deposits", "deposits_credited", "credited_unproven"})
AUDIT: Final = frozenset({"audit_chain", "audit_chain_on_topic", "audit_key_unique", "status_steps_join"})
TOPICS: Final = frozenset(
    {"audit_on_topic_matches_database", "state_matches_database", "results_match_database", "offsets_match_database"}
)
# Not broken in an installation that works: records that are read next, orders that are sent now or looked up.
UNDER_WAY: Final = frozenset({"nothing_waits", "nothing_unfinished", "in_doubt"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read. `books` is None where the exchange's own log cannot be read; `books_missing_because` says why."""

    answers: Answers
    requested: Requested
    dead_letters: DeadLetters
    snapshots: Mapping[str, bytes]
    topic_trail: TopicTrail
    database_trail: DatabaseTrail
    accounts: Accounts
    partitions: Sequence[PartitionProgress]
    books: ExchangeBooks | None
    books_missing_because: str = ""
    deposited: Deposited = field(default_factory=Deposited)
    sessions: Mapping[str, SessionCount] = field(default_factory=dict)
    # By kind and exchange: what was over by then may have no snapshot any more.
    snapshots_removed: Mapping[tuple[str, str], datetime] = field(default_factory=dict)

    @property
    def orders(self) -> Mapping[str, Order]:
        return self.requested.orders

    @property
    def withdrawals(self) -> Mapping[str, Withdrawal]:
        return self.requested.withdrawals


def check_all(evidence: Evidence, at_rest: bool = True) -> list[Finding]:
    """Every promise. Where the system is said to be at rest, what is under way counts as broken; else only `UNDER_WAY` reports queues."""
    orders, withdrawals, deposited = evidence.orders, evidence.withdrawals, evidence.deposited
    return [
        *check_answers(evidence.answers, evidence.requested, deposited.announcements, at_rest),
        check_dead_letters(evidence.dead_letters, evidence.answers.requests, evidence.requested.read_to),
        *_books(evidence, at_rest),
        *check_accounts(evidence.accounts, orders.values(), withdrawals.values(), deposited.deposits.keys()),
        *check_deposits(deposited),
        *check_trail(evidence.topic_trail, evidence.database_trail),
        check_state(
            evidence.snapshots, orders.values(), withdrawals.values(), deposited.deposits.values(), evidence.snapshots_removed
        ),
        check_sessions(evidence.sessions, evidence.database_trail.confirmed, orders),
        *check_progress(evidence.partitions, orders.values(), len(evidence.requested.pending_cancels), withdrawals.values()),
    ]


def _books(evidence: Evidence, at_rest: bool) -> list[Finding]:
    books, why = evidence.books, evidence.books_missing_because
    if books is None:
        return [*books_missing(why), *payouts_missing(why), *deposits_missing(why)]
    in_flight = in_flight_users(evidence.withdrawals.values()) | lagging_users(books.deposits, evidence.deposited)
    return [
        *check_books(books, evidence.orders, evidence.answers, owned_at_exchange(evidence.accounts), in_flight),
        *check_payouts(books.payouts, evidence.withdrawals, evidence.answers),
        *check_booked_deposits(books.deposits, evidence.deposited, at_rest),
    ]


def all_hold(findings: Iterable[Finding], names: frozenset[str] | None = None) -> bool:
    """Whether no promise is broken, of all or of those named."""
    return all(finding.holds for finding in findings if names is None or finding.name in names)


def breaches_of(findings: Iterable[Finding], name: str) -> int:
    """How often one promise is broken."""
    return sum(finding.breaches for finding in findings if finding.name == name)
