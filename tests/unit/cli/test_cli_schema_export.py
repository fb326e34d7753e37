"""The exported contract."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cli.check.schema_export import ASYNCAPI_NAME, documents, export
from cli.terminal.exits import CommandFailed
from schemas.decimals import format_decimal, parse_decimal
from schemas.requests import CancelRequest, DepositRequest, TradeRequest, WithdrawalRequest
from schemas.topics import Topics

_COMMITTED = Path(__file__).parents[3] / "docs" / "schemas"


def _document(name: str) -> Any:
    return json.loads(documents()[name])


def _nodes(node: Any) -> list[Any]:
    found = [node]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        found += _nodes(child)
    return found


def test_committed_documents_are_those_of_the_code() -> None:
    """docs/schemas is what `orchestrator schema export --out docs/schemas` writes now: nothing more, less or else."""
    assert {path.name: path.read_text(encoding="utf-8") for path in _COMMITTED.iterdir()} == documents()


@pytest.mark.parametrize("name", sorted(documents()))
def test_every_reference_of_a_document_leads_somewhere(name: str) -> None:
    """A generator of client code can follow them all without another file."""
    document = _document(name)
    references = [node["$ref"] for node in _nodes(document) if isinstance(node, dict) and isinstance(node.get("$ref"), str)]
    assert references
    for reference in references:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]


@pytest.mark.parametrize("model", [TradeRequest, CancelRequest, WithdrawalRequest, DepositRequest])
def test_request_schema_has_every_field_and_refuses_others(model: type[TradeRequest]) -> None:
    """The schema and the class that reads requests cannot say different things."""
    schema = _document("request.schema.json")["$defs"][model.__name__]
    assert set(schema["properties"]) == set(model.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {name for name, field in model.model_fields.items() if field.is_required()}


def test_alternatives_of_a_request_are_told_apart_by_a_constant_type() -> None:
    """Each alternative names its own type, in plain JSON Schema: `discriminator` means something else in AsyncAPI."""
    schema = _document("request.schema.json")
    types = [schema["$defs"][alternative["$ref"].rpartition("/")[2]]["properties"]["type"]["const"] for alternative in schema["oneOf"]]
    assert sorted(types) == ["cancel", "deposit", "session", "trade", "withdrawal"]
    found = {
        name: [node["discriminator"] for node in _nodes(_document(name)) if isinstance(node, dict) and "discriminator" in node]
        for name in documents()
    }
    assert found.pop(ASYNCAPI_NAME) == ["type"]
    assert not any(found.values())
    assert (schema["required"], sorted(schema["properties"]["type"]["enum"])) == (["type"], sorted(types))


def test_headers_of_a_request_are_those_that_workers_look_at() -> None:
    """A token with every request; a code is described, and its form is the one that is taken."""
    headers = _document(ASYNCAPI_NAME)["components"]["messages"]["request"]["headers"]
    assert headers["required"] == ["authorization"]
    assert set(headers["properties"]) == {"authorization", "x-session", "x-totp", "traceparent"}
    assert re.search(headers["properties"]["authorization"]["pattern"], "Bearer aa.bb.cc-_")
    assert not re.search(headers["properties"]["authorization"]["pattern"], "Basic aa.bb.cc")
    code = headers["properties"]["x-totp"]["pattern"]
    assert (bool(re.search(code, "012345")), bool(re.search(code, "12345")), bool(re.search(code, "12345x"))) == (True, False, False)


def test_money_is_a_string_everywhere() -> None:
    """No document allows a JSON number for an amount: a client that sends one would be refused."""
    for name in documents():
        for node in _nodes(_document(name)):
            if isinstance(node, dict):
                for money in ("quantity", "price", "amount", "fee", "cum_quote", "filled_quantity", "average_price"):
                    kinds = node.get(money, {}) if isinstance(node.get(money), dict) else {}
                    assert not {"number", "integer"} & {kind.get("type") for kind in [kinds, *kinds.get("anyOf", [])]}, f"{name}: {money}"


@pytest.mark.parametrize(
    "text",
    ["0", "0.1", "1" * 20, "1." + "1" * 18, "", ".", ".5", "5.", "-1", "+1", "1e3", "1" * 21, "0." + "1" * 19, "NaN", " 1"],
)
def test_pattern_of_amounts_takes_exactly_what_intake_takes(text: str) -> None:
    """Both are asked about the same texts."""
    trade = _document("request.schema.json")["$defs"]["TradeRequest"]["properties"]["quantity"]
    pattern = next(kind["pattern"] for kind in trade["anyOf"] if "pattern" in kind)
    request = {
        "schema_version": 1, "type": "trade", "idempotency_key": "k", "user_id": "u", "mode": "live", "exchange": "binance",
        "api_key_id": "a", "symbol": "BTC/USDT", "side": "buy", "order_type": "market", "quantity": text,
    }  # fmt: skip
    try:
        TradeRequest.model_validate(request)
        taken = True
    except ValidationError:
        taken = False
    assert (re.search(pattern, text) is not None) == taken
    if taken:
        assert re.search(pattern, format_decimal(parse_decimal(text)))
        assert format_decimal(Decimal(text)) == format_decimal(parse_decimal(text))


@pytest.mark.parametrize("name", ["result.schema.json", "audit-event.schema.json", "order-state.schema.json"])
def test_schema_of_what_we_write_is_open_to_new_fields(name: str) -> None:
    """A consumer that checks records with it keeps working when a field is added."""
    assert all(node.get("additionalProperties") is not False for node in _nodes(_document(name)) if isinstance(node, dict))


def test_asyncapi_names_every_topic_of_the_contract_with_its_settings() -> None:
    """Addresses and clean-up are those of the topics that workers create."""
    document = _document(ASYNCAPI_NAME)
    topics = Topics()
    assert document["asyncapi"] == "3.0.0"
    channels = document["channels"].values()
    policies = {channel["address"]: channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"] for channel in channels}
    assert policies == {
        topics.requests: ["delete"],
        topics.results: ["delete"],
        topics.audit: ["compact"],
        topics.state: ["compact"],
        topics.requests_dlq: ["delete"],
    }
    received = [operation for operation in document["operations"].values() if operation["action"] == "receive"]
    assert [operation["channel"]["$ref"] for operation in received] == ["#/channels/requests"]


def test_export_writes_every_document_and_names_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """Files as documents() gives them; a file in the way is a clear error."""
    assert {path.name for path in export(tmp_path / "new" / "dir")} == set(documents())
    (tmp_path / "file").touch()
    with pytest.raises(CommandFailed, match="cannot be written"):
        export(tmp_path / "file")
