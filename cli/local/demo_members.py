"""The members of the demo's cast that meet a limit, a status or a session of their own: each is there for one reason code or two.

A member is known by a name; `member_id` makes it this run's user. Start with `MEMBERS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from cli.local.demo_mistakes import Fields


class Standing(StrEnum):
    """What an operator has done about a member."""

    ACTIVE = "active"
    PENDING = "pending"
    FROZEN = "frozen"
    HALTED = "halted"
    REDUCED = "reduced"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a member asks its session to be; `lasts` None: as long as may be. `is_revoked`: it is revoked as soon as it has begun."""

    orders_max: int | None = None
    symbols: tuple[str, ...] | None = None
    lasts: timedelta | None = None
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `limits` are its own, by the names of `pipeline.gate.limits.Limits`; `session` None: it begins none."""

    name: str
    limits: Mapping[str, Decimal] = field(default_factory=dict)
    standing: Standing = Standing.ACTIVE
    session: Bounds | None = Bounds()


def _limited(name: str, **limits: int | str) -> Member:
    return Member(name, {key: Decimal(value) for key, value in limits.items()})


MEMBERS: Final = (
    _limited("volume", daily_volume_usd_max=150),
    _limited("hourly", hourly_trades_max=1),
    _limited("position", position_usd_max=1),
    _limited("loss", daily_loss_usd_max=0),
    _limited("open", open_orders_max=0),
    _limited("exposure", exchange_open_usd_max=0),
    # Not even the request that would begin a session keeps this rate.
    Member("rate", {"messages_burst_max": Decimal(0)}, session=None),
    _limited("repeats", duplicate_window=600),
    _limited("crosses"),
    _limited("band", price_band="0.01"),
    _limited("failing", price_band="0.01", cooldown_failures=2, cooldown=3600),
    _limited("payouts", daily_withdrawal_usd_max=1),
    _limited("suspect", suspicion_block=0),
    _limited("keys"),
    Member("pending", standing=Standing.PENDING, session=None),
    Member("frozen", standing=Standing.FROZEN, session=None),
    Member("halted", standing=Standing.HALTED),
    Member("reduced", standing=Standing.REDUCED),
    Member("guesser-1", session=None),
    Member("guesser-2", session=None),
    Member("brief", session=Bounds(lasts=timedelta(seconds=4))),
    Member("ended", session=Bounds(is_revoked=True)),
    Member("narrow", session=Bounds(symbols=("ETH/USDT",))),
    Member("spent", session=Bounds(orders_max=1)),
)
BY_NAME: Final = {member.name: member for member in MEMBERS}
OPERATOR: Final = "operator"
# Further keys of the member `keys`, each unfit in its own way.
REVOKED_KEY: Final = "revoked"
EXPIRED_KEY: Final = "expired"
READING_KEY: Final = "reading"


_CROSSING: Final[Fields] = {"side": "sell", "order_type": "limit", "price": "21000", "quantity": "0.001"}
_OUT_OF_BAND: Final[Fields] = {"order_type": "limit", "price": "21000"}
# Kinds that belong to one member: its name, and what its orders say otherwise, one after the other; the last one again and again.
OF_MEMBERS: Final[dict[str, tuple[str, tuple[Fields, ...]]]] = {
    "over_volume": ("volume", ({"quantity": "0.002"},)),
    "over_hourly": ("hourly", ({},)),
    "over_position": ("position", ({},)),
    "over_loss": ("loss", ({},)),
    "over_open_orders": ("open", ({},)),
    "over_exposure": ("exposure", ({},)),
    "over_rate": ("rate", ({},)),
    "repeated_order": ("repeats", ({},)),
    "self_trade": ("crosses", ({"order_type": "limit", "price": "22000"}, _CROSSING)),
    "out_of_band": ("band", (_OUT_OF_BAND,)),
    "failing": ("failing", (_OUT_OF_BAND,)),
    "suspicious": ("suspect", ({},)),
    "revoked_key": ("keys", ({"api_key_id": REVOKED_KEY},)),
    "expired_key": ("keys", ({"api_key_id": EXPIRED_KEY},)),
    "reading_key": ("keys", ({"api_key_id": READING_KEY},)),
    "pending_user": ("pending", ({},)),
    "frozen_user": ("frozen", ({},)),
    "halted_user": ("halted", ({},)),
    "reduced_user": ("reduced", ({},)),
    "session_over": ("brief", ({},)),
    "session_revoked": ("ended", ({},)),
    "session_elsewhere": ("narrow", ({},)),
    "session_spent": ("spent", ({},)),
}


def member_id(run: str, name: str) -> str:
    """The user id of a member in this run."""
    return f"demo-{run}-{name}"
