"""`schema export`: the contract for programs: JSON Schema of every record value, and an AsyncAPI 3.0 document of the topics.

Invariants:
1. The documents are made from the classes that read and write the records, so they cannot say something else.
2. The same code gives the same bytes: docs/schemas/ is compared with them in a test.
3. A request that the schema refuses is refused by intake. What producers read is open: fields may be added to it later.

Start with `documents`.
"""

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from cli.terminal.exits import CommandFailed, Exit
from pipeline.books.audit import SOFTWARE_VERSION
from schemas.audit import AuditEvent
from schemas.decimals import INTEGER_DIGITS_MAX, PLACES_MAX
from schemas.deposits import DEPOSIT_STATE
from schemas.requests import REQUEST
from schemas.results import RESULT
from schemas.state import ORDER_STATE
from schemas.topics import REQUEST_BYTES_MAX, Topics, TopicSpec
from schemas.withdrawals import WITHDRAWAL_STATE

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_ASYNCAPI: Final = "3.0.0"
ASYNCAPI_NAME: Final = "asyncapi.json"

Document = dict[str, Any]


class _WireSchema(GenerateJsonSchema):
    """Money is a decimal string on the wire, in both directions; pydantic would allow a number too."""

    schema_dialect = _DIALECT

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        return {
            "type": "string",
            "pattern": rf"^[0-9]{{1,{INTEGER_DIGITS_MAX}}}(\.[0-9]{{1,{PLACES_MAX}}})?$",
            "description": "A decimal string, such as \"0.001\": digits and at most one point.",
        }


def _opened(schema: Any) -> Any:
    """The schema for those who read what we write: a field that is added later is no error."""
    if isinstance(schema, dict):
        return {name: _opened(value) for name, value in schema.items() if (name, value) != ("additionalProperties", False)}
    return [_opened(value) for value in schema] if isinstance(schema, list) else schema


def _schemas() -> dict[str, Document]:
    options: dict[str, Any] = {"mode": "validation", "schema_generator": _WireSchema, "by_alias": True}
    request = REQUEST.json_schema(**options)
    # OpenAPI's object is no word of JSON Schema. The constant of each `type` tells the alternatives apart; `_asyncapi` names the field.
    kinds = sorted(request.pop("discriminator")["mapping"])
    request |= {"type": "object", "required": ["type"], "properties": {"type": {"type": "string", "enum": kinds}}}
    audit_event = AuditEvent.model_json_schema(**options)
    found = {
        "request": ("A request on trade.requests", request),
        "result": ("An answer on trade.results", _opened(RESULT.json_schema(**options))),
        "audit-event": ("An event on trade.audit", _opened(audit_event)),
        "order-state": ("A snapshot of an order on trade.state", _opened(ORDER_STATE.json_schema(**options))),
        "withdrawal-state": ("A snapshot of a withdrawal on trade.state", _opened(WITHDRAWAL_STATE.json_schema(**options))),
        "deposit-state": ("A snapshot of a deposit on trade.state", _opened(DEPOSIT_STATE.json_schema(**options))),
    }
    return {name: {"$schema": _DIALECT, **schema, "title": title} for name, (title, schema) in found.items()}


def _header(description: str, **more: object) -> Document:
    return {"type": "string", "description": description, **more}


_TRACE: Final = _header("W3C trace context, passed on from the request where it had one.")
_RESULT_HEADERS: Final[Document] = {
    "type": "object",
    "properties": {
        "ce_specversion": _header("CloudEvents version.", const="1.0"),
        "ce_id": _header("The source of the request and whether the answer is final."),
        "ce_source": _header("Who wrote it.", const="crypto-orchestrator"),
        "ce_type": _header("What it is.", const="trade.result.v1"),
        "content-type": _header("Of the value.", const="application/json"),
        "traceparent": _TRACE,
    },
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type"],
}
_TRACE_HEADERS: Final[Document] = {"type": "object", "properties": {"traceparent": _TRACE}}
_REQUEST_HEADERS: Final[Document] = {
    "type": "object",
    "properties": {
        "authorization": _header(
            "The user's token, a JWT whose `sub` is the request's `user_id` and whose scope allows the request. Required unless the "
            "installation is a sandbox, which does not look at it.",
            pattern="^[Bb][Ee][Aa][Rr][Ee][Rr] +[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+$",
        ),
        "x-session": _header(
            "`start` with a fresh code begins the session that the token's `sid` names: trades that follow with that `sid` need no code.",
            const="start",
        ),
        "x-totp": _header(
            "The current code of the user's second factor. Required where a request moves real money (`mode` live) and nothing else proves "
            "the second factor; each code is accepted once.",
            pattern="^[0-9]{6}$",
        ),
        "traceparent": _header("W3C trace context; passed on to every record that the request causes."),
    },
    "required": ["authorization"],
}
_DEAD_LETTER_HEADERS: Final[Document] = {
    "type": "object",
    "properties": {
        "dlq-source": _header("topic/partition/offset of the record that could not be read."),
        "dlq-reason-code": _header("Why, as a reason code."),
        "dlq-reason": _header("Why, in words."),
        "dlq-bytes-in-all": _header("How long the value was, where it was cut."),
    },
    "required": ["dlq-source", "dlq-reason-code", "dlq-reason"],
}


def _message(title: str, summary: str, key: str, headers: Document, payload: Document) -> Document:
    return {
        "title": title,
        "summary": summary,
        "contentType": "application/json",
        "headers": headers,
        "payload": payload,
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": "0.5.0"}},
    }


def _payload(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _messages() -> dict[str, Document]:
    limit = f"At most {REQUEST_BYTES_MAX} bytes, UTF-8."
    dead_letter = {"description": "The bytes of the record as they were, whatever they are."}
    return {
        "request": _message("Request", f"What a producer asks for. {limit}", "user_id", _REQUEST_HEADERS, _payload("request")),
        "result": _message(
            "Result", "An answer; exactly one per request is final.", "request_id", _RESULT_HEADERS, _payload("result")
        ),
        "auditEvent": _message(
            "Audit event",
            "One state change, chained by hash within its account.",
            "order_id:seq, or account:seq where there is no order",
            _TRACE_HEADERS,
            _payload("audit-event"),
        ),
        "orderState": _message("Order state", "The newest snapshot of an order.", "order_id", _TRACE_HEADERS, _payload("order-state")),
        "withdrawalState": _message(
            "Withdrawal state", "The newest snapshot of a withdrawal.", "withdrawal_id", _TRACE_HEADERS, _payload("withdrawal-state")
        ),
        "depositState": _message(
            "Deposit state", "The newest snapshot of a deposit.", "deposit_id", _TRACE_HEADERS, _payload("deposit-state")
        ),
        "deadLetter": {
            **_message("Dead letter", "A record that is no request.", "as it was", _DEAD_LETTER_HEADERS, dead_letter),
            "contentType": "application/octet-stream",
        },
    }


# Which messages are on which topic, and whether we read it or write it. Topics between our own agents are no part of the contract.
_CHANNELS: Final = (
    ("requests", "request", "receive", "Every record gets exactly one final result, found by its source."),
    ("results", "result", "send", "The answers."),
    ("audit", "auditEvent", "send", "The audit trail."),
    ("state", "orderState withdrawalState depositState", "send", "The newest state of every order, withdrawal and deposit."),
    ("requests_dlq", "deadLetter", "send", "What could not be read."),
)


def _channel(spec: TopicSpec, messages: list[str], description: str) -> Document:
    configuration: Document = {"cleanup.policy": [spec.cleanup_policy]}
    if "max.message.bytes" in spec.config:
        configuration["max.message.bytes"] = int(spec.config["max.message.bytes"])
    timestamps = spec.config.get("message.timestamp.type", "CreateTime")
    return {
        "address": spec.name,
        "description": f"{description} message.timestamp.type is {timestamps}.",
        "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        "bindings": {"kafka": {"topic": spec.name, "topicConfiguration": configuration, "bindingVersion": "0.5.0"}},
    }


def _without_definitions(name: str, schema: Document) -> Document:
    """The schema as part of a larger document: references lead to its place there."""
    body = {key: value for key, value in schema.items() if key != "$schema"}
    text = json.dumps(body).replace('"#/$defs/', f'"#/components/schemas/{name}/$defs/')
    moved: Document = json.loads(text)
    return moved


def _part(name: str, schema: Document) -> Document:
    """A schema of the components; in AsyncAPI `discriminator` is the name of the field that tells the alternatives of a request apart."""
    part = _without_definitions(name, schema)
    return {**part, "discriminator": "type"} if name == "request" else part


def _asyncapi(schemas: dict[str, Document]) -> Document:
    topics = Topics()
    specs = {spec.name: spec for spec in topics.specs(())}
    channels, operations = {}, {}
    for attribute, named, action, description in _CHANNELS:
        messages = named.split()
        spec = specs[getattr(topics, attribute)]
        name = attribute.replace("requests_dlq", "deadLetters")
        channels[name] = _channel(spec, messages, description)
        for message in messages:
            operations[f"{action}{message[0].upper()}{message[1:]}"] = {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
                "messages": [{"$ref": f"#/channels/{name}/messages/{message}"}],
            }
    return {
        "asyncapi": _ASYNCAPI,
        "info": {
            "title": "CryptoOrchestrator",
            "version": SOFTWARE_VERSION,
            "description": "Trade requests on Kafka, executed on crypto exchanges exactly once. Read results with "
            "isolation.level=read_committed. Topic names begin with ORCHESTRATOR_TOPIC_PREFIX where that is set.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": _messages(),
            "schemas": {name: _part(name, schema) for name, schema in schemas.items()},
        },
    }


def documents() -> dict[str, str]:
    """Every document by its file name, as the text of the file."""
    schemas = _schemas()
    found: dict[str, Document] = {f"{name}.schema.json": schema for name, schema in schemas.items()}
    found[ASYNCAPI_NAME] = _asyncapi(schemas)
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in sorted(found.items())}


def export(directory: Path) -> list[Path]:
    """Writes every document into the directory, which is made if need be; returns the files. Raises CommandFailed when it cannot."""
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in documents().items():
            path = directory / name
            path.write_text(content, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise CommandFailed(
            f"{directory} cannot be written: {error.strerror}. Nothing else was changed. Name another directory with --out.", Exit.USAGE
        ) from None
    return written
