"""Faults on demand: which request gets which, how often, and the log of what was injected.

Invariants:
1. A kind that says `after_accept` (and the accepted-by-nature kinds, see `ACCEPTING`) is injected only where the request took effect;
   where the exchange refused it, the refusal is answered and the rule is not used up.
2. Each injected fault is one line of `faults.jsonl`, with whether the request was accepted, and one in the counts. Counts survive a
   restart, rules do not.

Start at `Faults.choose`.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

LOG_NAME: Final = "faults.jsonl"
RULES_MAX: Final = 100


class FaultKind(StrEnum):
    """What goes wrong. Before acceptance the exchange's books stay as they are; after it they have changed."""

    HANG_BEFORE_ACCEPT = "hang_before_accept"
    HANG_AFTER_ACCEPT = "hang_after_accept"
    DROP_BEFORE_ACCEPT = "drop_before_accept"
    DROP_AFTER_ACCEPT = "drop_after_accept"
    HTTP_500_BEFORE_ACCEPT = "http_500_before_accept"
    HTTP_500_AFTER_ACCEPT = "http_500_after_accept"
    HTTP_502_BEFORE_ACCEPT = "http_502_before_accept"
    HTTP_502_AFTER_ACCEPT = "http_502_after_accept"
    # Binance's "Unknown error": the execution status is unknown, so both happen behind the same words.
    HTTP_503_BEFORE_ACCEPT = "http_503_before_accept"
    HTTP_503_AFTER_ACCEPT = "http_503_after_accept"
    # Binance's "Service Unavailable.": not executed.
    HTTP_503_UNAVAILABLE = "http_503_unavailable"
    HTTP_504_BEFORE_ACCEPT = "http_504_before_accept"
    HTTP_504_AFTER_ACCEPT = "http_504_after_accept"
    RATE_LIMIT = "rate_limit"
    # Fewer bytes than Content-Length says, then the connection closes.
    TRUNCATED_BODY = "truncated_body"
    # A complete answer whose JSON breaks off.
    CUT_JSON = "cut_json"
    HTML_200 = "html_200"
    EMPTY_JSON_200 = "empty_json_200"
    # Accepted, and answered as if a retry had met it: -2010 "Duplicate order sent."
    DUPLICATE = "duplicate"
    # Answered late; past the receive window or the venue's time-out it is not accepted.
    SLOW = "slow"
    PARTIAL_FILL = "partial_fill"
    # An order that no question shows for `delay_ms` after its acceptance: order queries say -2013, the lists leave it and its trades
    # out. It comes on top of any other fault of the same request.
    READ_LAG = "read_lag"


ACCEPTING: Final = frozenset(
    {
        FaultKind.HANG_AFTER_ACCEPT,
        FaultKind.DROP_AFTER_ACCEPT,
        FaultKind.HTTP_500_AFTER_ACCEPT,
        FaultKind.HTTP_502_AFTER_ACCEPT,
        FaultKind.HTTP_503_AFTER_ACCEPT,
        FaultKind.HTTP_504_AFTER_ACCEPT,
        FaultKind.TRUNCATED_BODY,
        FaultKind.CUT_JSON,
        FaultKind.HTML_200,
        FaultKind.EMPTY_JSON_200,
        FaultKind.DUPLICATE,
        FaultKind.PARTIAL_FILL,
        FaultKind.READ_LAG,
    }
)


class FaultRule(BaseModel):
    """One rule: the next `next_n` requests of a method and path, or each with `probability` (both: each of them until n are used).

    `client_order_id` limits it to one order; `delay_ms` is how late `slow` answers, and how long `read_lag` hides; `seed` makes the choice
    repeatable.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: FaultKind
    probability: float | None = Field(default=None, ge=0, le=1)
    next_n: int | None = Field(default=None, ge=1)
    method: Literal["GET", "POST", "DELETE"] = "POST"
    path: str = "/api/v3/order"
    client_order_id: str | None = None
    delay_ms: int = Field(default=0, ge=0, le=600_000)
    seed: int = 0

    @model_validator(mode="after")
    def _has_extent(self) -> "FaultRule":
        if self.probability is None and self.next_n is None:
            raise ValueError("a rule needs probability or next_n")
        return self


@dataclass(slots=True)
class ActiveRule:
    """A rule in use: how many are left, and its own random numbers."""

    rule: FaultRule
    left: int | None
    random: random.Random


class Faults:
    """The rules in force and the log of injections."""

    def __init__(self, data_dir: Path) -> None:
        path = data_dir / LOG_NAME
        self.counts: Counter[str] = Counter()
        self._active: list[ActiveRule] = []
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        whole = path.read_bytes().rpartition(b"\n")[0]
        for line in whole.splitlines():
            self.counts[orjson.loads(line)["kind"]] += 1
        os.ftruncate(self._descriptor, len(whole) + 1 if whole else 0)

    def set_rules(self, rules: list[FaultRule]) -> None:
        """Replaces all rules."""
        self._active = [ActiveRule(rule, rule.next_n, random.Random(rule.seed)) for rule in rules]

    def rules(self) -> list[dict[str, object]]:
        return [active.rule.model_dump(mode="json") | {"left": active.left} for active in self._active]

    def choose(self, method: str, path: str, client_order_id: str | None) -> ActiveRule | None:
        """The first rule that applies to this request and comes up; it is used up by one."""
        return self._choose(method, path, client_order_id, lags=False)

    def choose_lag(self, method: str, path: str, client_order_id: str | None) -> ActiveRule | None:
        """The same of the rules that hide orders."""
        return self._choose(method, path, client_order_id, lags=True)

    def _choose(self, method: str, path: str, client_order_id: str | None, *, lags: bool) -> ActiveRule | None:
        for active in self._active:
            rule = active.rule
            if (rule.kind is FaultKind.READ_LAG) is not lags:
                continue
            if active.left == 0 or rule.method != method or rule.path != path or rule.client_order_id not in (None, client_order_id):
                continue
            if rule.probability is not None and active.random.random() >= rule.probability:
                continue
            if active.left is not None:
                active.left -= 1
            return active
        return None

    def give_back(self, active: ActiveRule) -> None:
        """The rule was not injected after all."""
        if active.left is not None:
            active.left += 1

    def injected(
        self, rule: FaultRule, *, label: str | None, client_order_id: str | None, accepted: bool, now_us: int
    ) -> None:
        """Counts and logs one injection; the line is with the operating system when this returns."""
        self.counts[rule.kind.value] += 1
        row = {
            "time_us": now_us,
            "kind": rule.kind.value,
            "method": rule.method,
            "path": rule.path,
            "label": label,
            "client_order_id": client_order_id,
            "accepted": accepted,
        }
        os.write(self._descriptor, orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        os.close(self._descriptor)
