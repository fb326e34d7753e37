"""Records between our own agents in every form they may have, written and read by whatever release this script is run with.

It prints one line per record that its release writes: kind, form and bytes, and what its own readers make of it; then one line for each
such record on standard input, of another release: what its readers make of that. First of all it prints where its packages lie.

Forms: `bare` has nothing that may be left out, `full` has everything; `full field=word` has one word of an enumeration, one form for each.
It names nothing that the last release does not have (tests/last_release.py), and so can be run there.
"""

import dataclasses
import json
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

import infra
import schemas
from infra.postgres.step import pack, unpack
from pipeline.books.changes import OutputRecord
from schemas.commands import COMMAND, DECISION, DOUBT_DECISION
from schemas.deposits import DEPOSIT_STATE, DepositState
from schemas.results import RESULT, Result
from schemas.routing import ON_REPORTS, OnReports, RoutedOrder
from schemas.state import ORDER_STATE, OrderState
from schemas.withdrawals import WITHDRAWAL_STATE, WithdrawalState

_AT: Final = datetime(2026, 11, 24, 6, 46, 59, 1, tzinfo=UTC)
_NAMED: Final = {"scope": "symbol", "target": "BTC/USDT"}
_COMMANDS: Final = {"Command": COMMAND, "WithdrawalDecision": DECISION, "DoubtDecision": DOUBT_DECISION}
_STATES: Final = {OrderState: ORDER_STATE, WithdrawalState: WITHDRAWAL_STATE, DepositState: DEPOSIT_STATE, Result: RESULT}

# What a record of each kind is read with, by the topic or column it stands on.
READERS: Final[dict[str, TypeAdapter[Any]]] = {
    **{f"report {model.__name__}": ON_REPORTS for model in get_args(OnReports)},
    "work RoutedOrder": TypeAdapter(RoutedOrder),
    **{f"command {name}": adapter for name, adapter in _COMMANDS.items()},
    **{f"state {model.__name__}": adapter for model, adapter in _STATES.items()},
}
_MODELS: Final[dict[str, Any]] = {
    **{f"report {model.__name__}": model for model in get_args(OnReports)},
    "work RoutedOrder": RoutedOrder,
    **{f"command {name}": adapter._type for name, adapter in _COMMANDS.items()},
    **{f"state {model.__name__}": model for model in _STATES},
}


def fields_of(model: Any) -> dict[str, tuple[Any, bool]]:
    """Name → (annotation, whether it must be given) of a model's or dataclass's fields."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: (found.annotation, found.is_required()) for name, found in model.model_fields.items()}
    hints = get_type_hints(model)
    return {found.name: (hints[found.name], found.default is dataclasses.MISSING) for found in dataclasses.fields(model)}


def _enumeration(annotation: Any) -> list[Enum]:
    """The words of an enumeration, whether or not None stands for none; of a union of some, all of theirs."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return list(annotation)
    return [word for part in get_args(annotation) for word in _enumeration(part)] if _is_union(annotation) else []


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, types.UnionType}


def _value(name: str, annotation: Any, *, full: bool) -> Any:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if _is_union(annotation):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _value(name, parts[0], full=full) if full or len(parts) == len(get_args(annotation)) else None
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        return [_value(name, get_args(annotation)[0], full=full)] if full else []
    if words := _enumeration(annotation):
        return _NAMED.get(name, words[-1].value)
    if annotation in _PLAIN:
        return _NAMED.get(name, _PLAIN[annotation]) if annotation is str else _PLAIN[annotation] if annotation is not bool else full
    return _given(annotation, full=full)


_PLAIN: Final[dict[Any, Any]] = {str: "x1", int: 1, bool: True, Decimal: "1.5", AwareDatetime: _AT}


def _given(model: Any, *, full: bool) -> dict[str, Any]:
    """What a record is made of."""
    return {name: _value(name, annotation, full=full) for name, (annotation, required) in fields_of(model).items() if required or full}


def _fitting(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The same where one field's word rules others out."""
    if "scope" in given and "target" not in given:
        given["scope"] = "all"
    if given.get("scope") == "all":
        given["target"] = ""
    if kind == "command DoubtDecision":
        executed = given["command"] == "resolve_executed"
        figures = {"quantity": "1.5", "cost": "1.5"} if executed else {"quantity": None, "cost": None, "fees": []}
        return {**given, **figures}
    return given


def forms() -> Iterator[tuple[str, str, bytes]]:
    """(kind, form, bytes) of every record."""
    for kind, model in _MODELS.items():
        given = {"bare": _given(model, full=False), "full": _given(model, full=True)}
        for name, (annotation, _) in fields_of(model).items():
            given |= {f"full {name}={word.value}": {**given["full"], name: word.value} for word in _enumeration(annotation)}
        writer: TypeAdapter[Any] = READERS[kind] if kind.startswith("state ") else TypeAdapter(model)
        for form, values in given.items():
            yield kind, form, writer.dump_json(writer.validate_python(_fitting(kind, values)))
    headers = (("traceparent", b"00-1"), ("x", b"\xff"))
    for form, record in (("bare", OutputRecord("t", None, None)), ("full", OutputRecord("t", b"\xff", b"\0", headers))):
        yield "stored outputs", form, pack([record]) or b""


def understood(kind: str, value: bytes) -> dict[str, Any]:
    """What a reader makes of a record: `as` which kind, with which `fields`; or that it is `refused`, and why."""
    if kind == "stored outputs":
        try:
            return {"as": kind, "fields": {"records": repr(unpack(value))}}
        except ValueError as error:
            return {"refused": str(error)}
    if kind not in READERS:
        return {"refused": "no such kind is known"}
    try:
        read = READERS[kind].validate_json(value)
    except ValidationError as error:
        return {"refused": str(error)}
    fields = json.loads(TypeAdapter(type(read)).dump_json(read, exclude_unset=isinstance(read, BaseModel)))
    return {"as": f"{kind.split(maxsplit=1)[0]} {type(read).__name__}", "fields": fields}


def main() -> None:
    print(json.dumps([schemas.__file__, infra.__file__]))
    print(json.dumps([[kind, form, value.hex(), understood(kind, value)] for kind, form, value in forms()]))
    print(json.dumps([understood(kind, bytes.fromhex(value)) for kind, _, value in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
