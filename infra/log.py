"""Logs: one JSON object per line on standard error, UTC times with microseconds; or lines for people on a terminal.

Invariants:
1. What may hold a secret is not logged at all; as a second line of defence, values under these names are replaced.
2. A library that complains several times a second (aiokafka does while its broker is away) is heard once in a while: our own parts say
   once that something is away, and once that it is back.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import orjson
import structlog

_TALKATIVE: Final = ("aiokafka", "faust", "mode", "infra.kafka.transport")
_INTERVAL_SECONDS: Final = 30.0
_SECRET_NAMES: Final = frozenset({"authorization", "x-totp", "secret", "password", "api_key", "token", "signature", "master_key"})


def _hide_secrets(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event:
        if name.lower() in _SECRET_NAMES:
            event[name] = "…"
    return event


class _OnceInAWhile(logging.Filter):
    """Lets a library say each of its sentences once per interval; how often it was said meanwhile is added to the next."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """By the place in the code: the text has addresses and times in it."""
        if not record.name.startswith(_TALKATIVE):
            return True
        place = (record.pathname, record.lineno)
        said_at, unsaid = self._said.get(place, (-_INTERVAL_SECONDS, 0))
        if record.created - said_at < _INTERVAL_SECONDS:
            self._said[place] = (said_at, unsaid + 1)
            return False
        self._said[place] = (record.created, 0)
        if unsaid:
            record.msg = f"{record.getMessage()} (said {unsaid} times more since)"
            record.args = ()
        return True


def configure_logging(level: str) -> None:
    """Sets up structlog, and the standard library's loggers (Faust's and aiokafka's from `warning` on) to write through it."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(serializer=lambda value, **_: orjson.dumps(value, default=str).decode())
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_OnceInAWhile())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Faust logs the steps of our transport under its module.
    for name in ("faust", "mode", "infra.kafka.transport", "aiokafka", "ccxt", "asyncio", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # aiokafka tells every rebalance twice at this level and above.
    logging.getLogger("aiokafka.consumer.group_coordinator").setLevel(logging.ERROR)
