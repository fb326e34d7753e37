"""The ten steps of a real-money trade, in one place: what each does, and where it is done.

docs/architecture.md shows them; a test finds every place that is named here. Steps 1 and 3 to 6 are the gate; they run inside the database
transaction of step 2, which keeps what they decided. Step 7 has database transactions of its own, before and after the call, and each of
them ends with steps 8 to 10.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class TradeStep:
    """`places` are written `module:name` or `module:class.name`."""

    number: int
    name: str
    does: str
    places: tuple[str, ...]


TEN_STEPS: Final = (
    TradeStep(
        1,
        "safety validation",
        "The request is fresh, of a kind that is offered, not halted, from an active user, well formed, and within the amount limits.",
        ("pipeline.gate.safety:request_is_fresh", "pipeline.gate.ladder:refusal_of"),
    ),
    TradeStep(
        2,
        "database transaction",
        "Fences off former owners of the partition, locks the users' accounts, and holds until everything of the batch is stored.",
        ("infra.postgres.step:open_step", "infra.postgres.step:StepTransaction.lock_accounts"),
    ),
    TradeStep(
        3,
        "second factor",
        "A code is right for the time at which the broker appended the record, and is used for the first time; or a session that one began "
        "covers the order; or the token's issuer has asked for a second factor lately, where its word is taken.",
        ("pipeline.requests.confirmation:way_of", "pipeline.model.second_factor:check_code"),
    ),
    TradeStep(
        4,
        "API key",
        "The user's key for this exchange is known, active, not expired, and may trade.",
        ("pipeline.gate.api_key:api_key_is_usable",),
    ),
    TradeStep(
        5,
        "risk",
        "The order keeps every limit of its user, with all that is open and was done before, and fits no pattern of misuse.",
        ("pipeline.gate.risk:position_is_within_limit", "pipeline.gate.surveillance:assess"),
    ),
    TradeStep(
        6,
        "exchange connection",
        "The exchange trades the symbol, its price is fresh, and it would take the order as it is; then the funds are held.",
        ("pipeline.gate.connection:market_is_trading", "pipeline.books.ledger:Ledger.hold"),
    ),
    TradeStep(
        7,
        "execution",
        "The intent is stored, the halts are looked at once more, and the order is sent to the exchange, once.",
        ("pipeline.orders.execution:plan", "agents.steps.execution:ExecutionStep.run"),
    ),
    TradeStep(
        8,
        "record",
        "What the exchange proved becomes the order's state, fills are posted in the ledger, and what is not needed is released.",
        ("pipeline.orders.execution:conclude", "pipeline.orders.settlement:apply_venue_order"),
    ),
    TradeStep(
        9,
        "audit",
        "Every change of state becomes one event in its user's hash chain, with all that the same database transaction did.",
        ("pipeline.books.audit:AuditTrail",),
    ),
    TradeStep(
        10,
        "commit",
        "First the database, with the records that are to be published; then one Kafka transaction with them and the input offset.",
        ("infra.postgres.step:StepTransaction.finish", "infra.kafka.transactions:PartitionProducer.publish"),
    ),
)
