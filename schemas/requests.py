"""Requests: what a producer in any language puts on `trade.requests`.

Invariants:
1. Money is a decimal string; a JSON number in a money field is refused as INVALID_DECIMAL.
2. A field that the contract does not name is refused by name: a misspelt `stop_price` must not become a market order.
3. Exactly one of `quantity` and `quote_quantity`; prices exactly as the order type needs them.
4. A field that is given twice is refused: which of the two a reader takes differs from language to language (RFC 8259, section 4).
5. What is wrong with a record is told by field names; a value is never repeated, as it may be a secret in the wrong place.

Start with `decode_request`.
"""

import difflib
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from schemas.decimals import DecimalString
from schemas.order_kinds import ORDER_KINDS, PRICE_FIELDS
from schemas.orders import Mode, OrderType, Side, TimeInForce
from schemas.reasons import ReasonCode
from schemas.times import OutOfBounds, bounded
from schemas.topics import DEAD_LETTER_BYTES_MAX, REQUEST_BYTES_MAX
from schemas.wire import SCHEMA_VERSION, WireModel

KEY_LENGTH_MAX: Final = 255
USER_ID_LENGTH_MAX: Final = 128
RESERVED_PREFIX: Final = "@"
ORDERS_MAX: Final = 1_000_000_000
SESSION_SYMBOLS_MAX: Final = 100
SESSION_ID: Final = r"^s[0-9a-f]{32}$"
_PRINTABLE: Final = r"^[\x21-\x7e]+$"
# Date, time, zone (RFC 3339, section 5.6); whether the numbers make a moment is pydantic's to say.
_RFC_3339: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)
# Ends every name in a JSON text, and a part of a string that has an escaped quote before a colon.
_NAME_END: Final = re.compile(rb'"[ \t\r\n]*:')
# Ids of orders, of withdrawals, of deposits, of their announcements and of sessions.
_ORDER_ID: Final = re.compile(r"[owdns][0-9a-f]{32}")


def _require_version(value: object) -> object:
    # `1.0` and `true` would pass for 1.
    if type(value) is not int or value != SCHEMA_VERSION:
        raise PydanticCustomError("schema_version", "must be the number {version}", {"version": SCHEMA_VERSION})
    return value


def _require_rfc_3339(value: object) -> object:
    # A number of seconds or milliseconds, which pydantic would guess at, is not a deadline.
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise PydanticCustomError("rfc_3339", "must be a time with its zone, such as \"2026-11-24T06:46:59Z\"")
    return value


def _in_bounds(value: datetime) -> datetime:
    try:
        return bounded(value)
    except OutOfBounds as error:
        raise PydanticCustomError("time_out_of_bounds", "{bound}", {"bound": str(error)}) from None


def is_reserved(user_id: str) -> bool:
    """Whether a name is one of the system's own accounts (`@commands`, `@quarantine`, `@fees` …): no user has it, and nobody acts under it.
    They own what nobody else does in the ledger, and their audit chains tell of what nobody is proven to have done."""
    return user_id.startswith(RESERVED_PREFIX)


def _require_name_of_a_user(value: str) -> str:
    if is_reserved(value):
        raise PydanticCustomError("user_id", "must not begin with @: those are the system's own accounts")
    # Audit keys are `order_id:seq` or `account:seq`: a user who is called like an order would share its keys, and compaction keep one.
    if _ORDER_ID.fullmatch(value):
        raise PydanticCustomError("user_id", "must not look like an order id")
    return value


UserId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=USER_ID_LENGTH_MAX, pattern=_PRINTABLE),
    AfterValidator(_require_name_of_a_user),
    Field(json_schema_extra={"not": {"pattern": f"^({RESERVED_PREFIX}|{_ORDER_ID.pattern}$)"}}),
]
Version = Annotated[Literal[1], BeforeValidator(_require_version)]
Deadline = Annotated[
    AwareDatetime,
    BeforeValidator(_require_rfc_3339),
    AfterValidator(_in_bounds),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": f"^{_RFC_3339.pattern.replace(chr(92) + 'd', '[0-9]')}$"}),
]
# Any text is a key, but NUL cannot be stored in PostgreSQL's text type.
IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=KEY_LENGTH_MAX, pattern=r"^[^\x00]+$")]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_PRINTABLE)]

# JSON Schema of a field that is there. Every optional field may also be null, which means the same as leaving it out.
_GIVEN: Final = {"not": {"type": "null"}}
_LEFT_OUT: Final = {"type": "null"}


def _only(given: str, left_out: str) -> dict[str, object]:
    return {"required": [given], "properties": {given: _GIVEN, left_out: _LEFT_OUT}}


def _prices_of(order_type: OrderType) -> dict[str, object]:
    """What JSON Schema says of an order type: the fields that it needs, and those that it does not take."""
    kind = ORDER_KINDS[order_type]
    needed = sorted(kind.prices)
    fields: dict[str, object] = {name: _GIVEN if name in needed else _LEFT_OUT for name in PRICE_FIELDS}
    if not kind.takes_time_in_force:
        fields["time_in_force"] = _LEFT_OUT
    if not kind.takes_quote_quantity:
        fields["quote_quantity"] = _LEFT_OUT
    return {
        "if": {"properties": {"order_type": {"const": order_type.value}}, "required": ["order_type"]},
        "then": {"properties": fields, **({"required": needed} if needed else {})},
    }


def _session_rules(schema: dict[str, Any]) -> None:
    """The same for a session: bounds are for one that begins, another one's id for one that is revoked."""
    is_revoked = {"properties": {"revoke": {"const": True}}, "required": ["revoke"]}
    schema["if"] = is_revoked
    schema["then"] = {"properties": dict.fromkeys(("session_expires_at", "amount_max_usd", "orders_max", "symbols"), _LEFT_OUT)}
    schema["else"] = {"properties": {"session_id": _LEFT_OUT}}


def _order_rules(schema: dict[str, Any]) -> None:
    """The rules between fields, for programs: the same as `TradeRequest` checks."""
    schema["oneOf"] = [_only("quantity", "quote_quantity"), _only("quote_quantity", "quantity")]
    schema["allOf"] = [_prices_of(order_type) for order_type in OrderType]


class RequestBase(WireModel):
    """The fields of every request."""

    schema_version: Version
    request_id: Identifier | None = None
    idempotency_key: IdempotencyKey
    user_id: UserId
    expires_at: Deadline | None = None


class MoneyRequest(RequestBase):
    """The fields of every request that is about money or orders."""

    mode: Mode


class TradeRequest(MoneyRequest):
    """An order to be sent to an exchange. `quantity` in base units, `quote_quantity` in quote units, prices in quote per base."""

    model_config = ConfigDict(json_schema_extra=_order_rules)

    type: Literal["trade"]
    exchange: Name
    api_key_id: Identifier
    symbol: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    side: Side
    order_type: OrderType
    quantity: DecimalString | None = None
    quote_quantity: DecimalString | None = None
    price: DecimalString | None = None
    stop_price: DecimalString | None = None
    trailing_delta: DecimalString | None = None
    time_in_force: TimeInForce | None = None

    @model_validator(mode="after")
    def _amounts_and_prices_fit_the_order_type(self) -> "TradeRequest":
        if (self.quantity is None) == (self.quote_quantity is None):
            raise PydanticCustomError("amounts", "give exactly one of quantity and quote_quantity")
        kind = ORDER_KINDS[self.order_type]
        if self.quote_quantity is not None and not kind.takes_quote_quantity:
            raise PydanticCustomError("amounts", "quote_quantity is for market orders; other types need quantity")
        needed = kind.prices
        given = {name for name in PRICE_FIELDS if getattr(self, name) is not None}
        if missing := ", ".join(sorted(needed - given)):
            raise PydanticCustomError("prices", "{order_type} needs {names}", {"order_type": self.order_type, "names": missing})
        if surplus := ", ".join(sorted(given - needed)):
            raise PydanticCustomError("prices", "{order_type} takes no {names}", {"order_type": self.order_type, "names": surplus})
        if self.time_in_force is not None and not kind.takes_time_in_force:
            raise PydanticCustomError("time_in_force", "a market order takes no time_in_force")
        return self


class CancelRequest(MoneyRequest):
    """Cancels the order that the same user's `target_idempotency_key` made."""

    type: Literal["cancel"]
    target_idempotency_key: IdempotencyKey
    exchange: Name | None = None
    api_key_id: Identifier | None = None
    symbol: Annotated[str, StringConstraints(max_length=64)] | None = None


class TransferRequest(MoneyRequest):
    """The fields that a withdrawal and an announced deposit share. `amount` in units of `asset`."""

    exchange: Name
    api_key_id: Identifier
    asset: Name
    amount: DecimalString
    network: Name | None = None
    address: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)] | None = None
    address_tag: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=_PRINTABLE)] | None = None


class WithdrawalRequest(TransferRequest):
    type: Literal["withdrawal"]
    address: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]


class DepositRequest(TransferRequest):
    type: Literal["deposit"]


class SessionRequest(RequestBase):
    """Begins the session that the token's `sid` names, with a fresh code, or revokes it (`revoke`), for which no code is needed.

    `amount_max_usd` in US dollars. What is not given is as wide as the installation lets it be. `session_id` names another session of the
    same user that is to be revoked.
    """

    model_config = ConfigDict(json_schema_extra=_session_rules)

    type: Literal["session"]
    session_expires_at: Deadline | None = None
    amount_max_usd: DecimalString | None = None
    orders_max: Annotated[int, Field(strict=True, ge=1, le=ORDERS_MAX)] | None = None
    symbols: (
        Annotated[
            tuple[Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]+$")], ...],
            Field(min_length=1, max_length=SESSION_SYMBOLS_MAX),
        ]
        | None
    ) = None
    revoke: Annotated[bool, Field(strict=True)] = False
    session_id: Annotated[str, StringConstraints(pattern=SESSION_ID)] | None = None

    @model_validator(mode="after")
    def _bounds_are_for_a_start(self) -> "SessionRequest":
        bounds = (self.session_expires_at, self.amount_max_usd, self.orders_max, self.symbols)
        if self.revoke and any(bound is not None for bound in bounds):
            raise PydanticCustomError("session", "a session that is revoked takes no bounds")
        if self.session_id is not None and not self.revoke:
            raise PydanticCustomError("session", "session_id is for revoking: a session begins under the token's sid")
        return self


Request = TradeRequest | CancelRequest | WithdrawalRequest | DepositRequest | SessionRequest
REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is no request: why, and as much of its identity as could be read (both or neither).

    `dead_letter` says whether the record goes to the dead-letter topic: what is not even a JSON object, or names nobody to answer.
    """

    reason_code: ReasonCode
    reason: str
    user_id: str | None
    idempotency_key: str | None
    request_id: str | None
    dead_letter: bool


class _GivenTwice(ValueError):
    """A JSON object that names a field twice."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON (RFC 8259)")


def _each_name_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # One look per name: a record of a megabyte can have a hundred thousand of them.
    document: dict[str, object] = {}
    for name, value in pairs:
        if name in document:
            raise _GivenTwice(name)
        document[name] = value
    return document


def _identity(document: object) -> tuple[str | None, str | None, str | None]:
    if not isinstance(document, dict):
        return None, None, None
    try:
        named = _Identity.model_validate({name: document.get(name) for name in ("user_id", "idempotency_key")})
    except ValidationError:
        return None, None, None
    try:
        request_id = _OptionalRequestId.model_validate({"request_id": document.get("request_id")}).request_id
    except ValidationError:
        request_id = None
    return named.user_id, named.idempotency_key, request_id


class _Identity(WireModel):
    user_id: UserId
    idempotency_key: IdempotencyKey


class _OptionalRequestId(WireModel):
    request_id: Identifier | None


def decode_request(value: bytes | None) -> Request | Unreadable:
    """Reads a record value as a request, or says why it is none. Never raises for what a producer may have sent."""
    if value is None:
        return Unreadable(ReasonCode.SCHEMA_INVALID, "the record has no value (a tombstone)", None, None, None, dead_letter=True)
    validation: ValidationError | None = None
    if len(value) <= REQUEST_BYTES_MAX:
        try:
            request = REQUEST.validate_json(value)
        except ValidationError as error:
            validation = error
        else:
            # A request has no objects inside; only with more names than fields can one be there twice. Reading it again costs 7 µs.
            if len(_NAME_END.findall(value)) == len(request.model_fields_set):
                return request
            try:
                json.loads(value, object_pairs_hook=_each_name_once)
            except _GivenTwice as error:
                return _twice(error)
            return request
    too_long = f"the value has {len(value)} bytes; {REQUEST_BYTES_MAX} are the most"
    if len(value) > DEAD_LETTER_BYTES_MAX:
        # A compressed record may be many times larger than the broker's limit: reading it for a name to answer could stop the worker.
        return Unreadable(ReasonCode.SCHEMA_INVALID, too_long, None, None, None, dead_letter=True)
    try:
        # RFC 8259 asks for UTF-8; nan, inf and unbounded nesting are not read.
        document: object = json.loads(value.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_each_name_once)
    except UnicodeDecodeError:
        return Unreadable(ReasonCode.SCHEMA_INVALID, "the value is not UTF-8", None, None, None, dead_letter=True)
    except _GivenTwice as error:
        return _twice(error)
    except (ValueError, RecursionError):
        return Unreadable(ReasonCode.SCHEMA_INVALID, "the value is not JSON", None, None, None, dead_letter=True)
    user_id, idempotency_key, request_id = _identity(document)
    if validation is None:
        return Unreadable(ReasonCode.SCHEMA_INVALID, too_long, user_id, idempotency_key, request_id, dead_letter=True)
    code, reason = _explain(document, validation)
    return Unreadable(code, reason, user_id, idempotency_key, request_id, dead_letter=user_id is None)


def _twice(error: _GivenTwice) -> Unreadable:
    # Whose request it is cannot be told either: the name may be among what is there twice, or what another reader takes for the second.
    name = error.name[:64].encode("utf-8", "backslashreplace").decode()
    return Unreadable(ReasonCode.SCHEMA_INVALID, f"{name}: is given twice", None, None, None, dead_letter=True)


_REASONS_LISTED_MAX: Final = 5
# A name that is longer is no misspelt field, and an object with more of them is no request.
_NAME_LENGTH_MAX: Final = 64
_NAMES_MAX: Final = 64
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    get_args(model.model_fields["type"].annotation)[0]: tuple(model.model_fields) for model in get_args(Request)
}


def _message(problem: ErrorDetails, document: dict[str, object]) -> str:
    """What is wrong, without any value; where a name is close to one of the contract, that one."""
    kind, location = problem["type"], problem["loc"]
    if kind.startswith("union_tag"):
        # pydantic repeats an unknown tag in its message.
        names = list(document)[:_NAMES_MAX] if "type" not in document else []
        near = [name for name in names if len(name) <= _NAME_LENGTH_MAX and difflib.get_close_matches("type", [name.lower()])]
        return f"type must be {', '.join(list(_FIELDS)[:-1])} or {list(_FIELDS)[-1]}" + ("; it has a misspelt `type`" if near else "")
    if kind != "extra_forbidden" or len(location) != 2:
        return problem["msg"][:120]
    name, fields = str(location[1]), _FIELDS.get(str(location[0]), ())
    matches = difflib.get_close_matches(name.lower(), fields, n=1) if len(name) <= _NAME_LENGTH_MAX else []
    return f"is no field of a {location[0]}" + (f"; did you mean {matches[0]}?" if matches else "")


def _explain(document: object, error: ValidationError) -> tuple[ReasonCode, str]:
    """The code and text of a validation error; names fields, never repeats values (they may be secrets put in the wrong place)."""
    if not isinstance(document, dict):
        return ReasonCode.SCHEMA_INVALID, "the value is not a JSON object"
    version = document.get("schema_version")
    if isinstance(version, int) and not isinstance(version, bool) and version != SCHEMA_VERSION:
        return ReasonCode.SCHEMA_VERSION_UNSUPPORTED, f"schema_version must be {SCHEMA_VERSION}"
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    texts = []
    for problem in problems[:_REASONS_LISTED_MAX]:
        # The first part of a location is the discriminator's tag.
        where = ".".join(str(part)[:64] for part in problem["loc"][1:]) or "request"
        texts.append(f"{where}: {_message(problem, document)}")
    only_decimals = all(problem["type"] == "invalid_decimal" for problem in problems)
    return (ReasonCode.INVALID_DECIMAL if only_decimals else ReasonCode.SCHEMA_INVALID), "; ".join(texts)
