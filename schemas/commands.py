"""Commands: what operators put on `trade.commands`, and the stop that a worker asks for by itself.

Invariants:
1. A command carries its operator's token and second factor in the record's headers (`authorization`, `x-totp`), as requests do. What only
   stops needs no second factor.
2. A command names its scope in full: `all`, or one exchange, symbol or user by name.
3. Every record has exactly one audit event, applied or refused, whose `request_id` is its `command_id`: in its operator's chain, or in
   that of `@commands` when nobody is proven to have sent it. What is no command has its place on the topic there.
4. Commands of one scope, and decisions about one withdrawal or order, are under one key, so that they are applied in the order in which
   they were sent.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import StringConstraints, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from schemas.decimals import DecimalString, format_decimal
from schemas.requests import Identifier, UserId, Version
from schemas.symbols import FORM, is_symbol
from schemas.wire import InternalModel, Timestamp, WireModel

COMMANDS_ACCOUNT: Final = "@commands"
TRIPS_ACCOUNT: Final = "@trips"
REASON_LENGTH_MAX: Final = 300


class HaltScope(StrEnum):
    ALL = "all"
    EXCHANGE = "exchange"
    SYMBOL = "symbol"
    USER = "user"


class HaltLevel(StrEnum):
    """`halt`: nothing new is submitted. `reduce`: only orders that make a position smaller. Cancels pass both."""

    HALT = "halt"
    REDUCE = "reduce"


class CommandWord(StrEnum):
    HALT = "halt"
    REDUCE = "reduce"
    RESUME = "resume"


Target = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x20\x7f]*$")]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=REASON_LENGTH_MAX, pattern=r"^[^\x00]+$")]


class _Scoped(WireModel):
    scope: HaltScope
    target: Target = ""

    @model_validator(mode="after")
    def _target_fits_the_scope(self) -> "_Scoped":
        if (self.scope is HaltScope.ALL) != (self.target == ""):
            raise PydanticCustomError("target", "name a target for every scope but `all`, which has none")
        # One that fits no order would be in force and stop nothing.
        if self.scope is HaltScope.SYMBOL and not is_symbol(self.target):
            raise PydanticCustomError("target", f"a symbol {FORM}")
        return self


class Command(_Scoped):
    """`operator` must equal the token's `sub`.

    `cancel_open`: while the stop is in force, orders that rest at an exchange and that it would not let pass are canceled. It says nothing
    with `resume`.
    """

    schema_version: Version
    command_id: Identifier
    command: CommandWord
    operator: UserId
    reason: Reason
    cancel_open: bool = False

    @property
    def target_id(self) -> str:
        """What it is about, for the audit trail."""
        return self.target or self.scope.value


COMMAND: Final[TypeAdapter[Command]] = TypeAdapter(Command)


class DecisionWord(StrEnum):
    APPROVE = "approve_withdrawal"
    REFUSE = "refuse_withdrawal"


class WithdrawalDecision(WireModel):
    """An operator's word on a withdrawal that waits for approval. `operator` must equal the token's `sub`."""

    schema_version: Version
    command_id: Identifier
    command: DecisionWord
    operator: UserId
    reason: Reason
    withdrawal_id: Identifier

    @property
    def target_id(self) -> str:
        """What it is about, for the audit trail."""
        return self.withdrawal_id


DECISION: Final[TypeAdapter[WithdrawalDecision]] = TypeAdapter(WithdrawalDecision)


class DoubtWord(StrEnum):
    EXECUTED = "resolve_executed"
    NOT_EXECUTED = "resolve_not_executed"


class StatedFee(WireModel):
    asset: Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[\x21-\x7e]+$")]
    amount: DecimalString


class DoubtDecision(WireModel):
    """An operator's word on what became of an order or withdrawal in doubt. `operator` must equal the token's `sub`.

    With `resolve_executed`: of an order `quantity` is what was executed, in base, and `cost` its value, in quote units; of a withdrawal
    `quantity` is what was paid out and `cost` its fee, and `exchange_id` the exchange's id of it. `evidence` says what was seen where.
    """

    schema_version: Version
    command_id: Identifier
    command: DoubtWord
    operator: UserId
    reason: Reason
    evidence: Reason
    target_id: Identifier
    quantity: DecimalString | None = None
    cost: DecimalString | None = None
    fees: tuple[StatedFee, ...] = ()
    exchange_id: Identifier | None = None

    @model_validator(mode="after")
    def _figures_fit_the_word(self) -> "DoubtDecision":
        executed = self.command is DoubtWord.EXECUTED
        if executed != (self.quantity is not None) or executed != (self.cost is not None) or (self.fees and not executed):
            raise PydanticCustomError("figures", "`resolve_executed` needs `quantity` and `cost`; `resolve_not_executed` takes no figures")
        if self.quantity is not None and self.quantity <= 0:
            raise PydanticCustomError("figures", "`quantity` must be above zero: what was not executed is `resolve_not_executed`")
        return self

    @property
    def figures(self) -> str:
        """What two operators must agree on."""
        fees = ",".join(f"{format_decimal(fee.amount)} {fee.asset}" for fee in sorted(self.fees, key=lambda fee: fee.asset))
        told = [format_decimal(amount) if amount is not None else "-" for amount in (self.quantity, self.cost)]
        return " ".join([self.command.value, *told, fees or "-", self.exchange_id or "-"])


DOUBT_DECISION: Final[TypeAdapter[DoubtDecision]] = TypeAdapter(DoubtDecision)


class HaltTrip(_Scoped):
    """The system found a reason to stop by itself, and will again while it is there. On `trade.reports`, where only the system writes."""

    model_config = InternalModel.model_config

    schema_version: Literal[1]
    type: Literal["trip"] = "trip"
    trip_id: str
    level: HaltLevel
    reason: Reason
    tripped_at: Timestamp
