"""What the settings of our topics must be: one table, with what breaks otherwise and whether a worker starts all the same.

A topic gets its settings from whoever made it, from the cluster's defaults and from any administrator later. So every setting that can
break a promise stands here, is set when we make a topic, and is looked at by each start of a worker and by `doctor`.

Start with `EXPECTATIONS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from schemas.topics import OUTPUT_BATCH_BYTES_MAX, TopicKind, TopicSpec

Reaction = Literal["refuse", "warn"]

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_INPUTS: Final[tuple[TopicKind, ...]] = ("input", "queue")
_ALL: Final[tuple[TopicKind, ...]] = ("input", "queue", "output", "compacted")
# What the client of the workers can unpack (aiokafka with cramjam); `producer` keeps what the producer chose among them.
_READABLE: Final = frozenset({"producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings of this installation ask for: `kafka_replication_factor` and `kafka_min_insync_replicas`."""

    copies: int
    min_insync_replicas: int


@dataclass(frozen=True, slots=True)
class Found:
    """A topic as the broker tells it. `copies` and `in_sync` are those of its worst partition; None where they were not asked for."""

    settings: Mapping[str, str]
    copies: int | None = None
    in_sync: int | None = None


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """One thing that is not as it must be. `refuse`: no worker starts with it."""

    topic: str
    text: str
    reaction: Reaction

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One setting of the topics of some kinds.

    `must` gives what is allowed, in words, or None where the value is allowed; it gets the value, the topic's own specification and what
    this installation wants. `why` is what happens otherwise.
    """

    setting: str
    kinds: tuple[TopicKind, ...]
    must: Callable[[str, TopicSpec, Wanted], str | None]
    reaction: Reaction
    why: str


def _as_made(setting: str) -> Callable[[str, TopicSpec, Wanted], str | None]:
    """As the topic's specification has it; anything where it says nothing."""

    def must(value: str, spec: TopicSpec, _: Wanted) -> str | None:
        wanted = spec.cleanup_policy if setting == "cleanup.policy" else spec.config.get(setting)
        return None if wanted is None or value == wanted else wanted

    return must


def _at_least(least: int, *, or_unlimited: bool = False) -> Callable[[str, TopicSpec, Wanted], str | None]:
    def must(value: str, _: TopicSpec, __: Wanted) -> str | None:
        number = int(value)
        return None if number >= least or (or_unlimited and number < 0) else f"at least {least}"

    return must


def _one_of(allowed: frozenset[str]) -> Callable[[str, TopicSpec, Wanted], str | None]:
    return lambda value, _, __: None if value in allowed else f"one of {', '.join(sorted(allowed))}"


def _enough_in_sync(value: str, _: TopicSpec, wanted: Wanted) -> str | None:
    return None if int(value) >= wanted.min_insync_replicas else f"at least {wanted.min_insync_replicas}"


EXPECTATIONS: Final[tuple[Expectation, ...]] = (
    Expectation(
        "cleanup.policy", _ALL, _as_made("cleanup.policy"), "refuse", "what must be kept would be deleted, or what must be read compacted"
    ),
    Expectation(
        "message.timestamp.type",
        ("input",),
        _as_made("message.timestamp.type"),
        "refuse",
        "producers could set the time by which codes, ages and deadlines are judged",
    ),
    Expectation(
        "compression.type",
        ("input",),
        _as_made("compression.type"),
        "refuse",
        "a small compressed record could unpack to more than a worker's memory; the broker unpacks and measures with this setting",
    ),
    Expectation("compression.type", _ALL, _one_of(_READABLE), "refuse", "workers could not unpack its records"),
    Expectation(
        "max.message.bytes", ("input", "output"), _as_made("max.message.bytes"), "refuse", "a dead letter would not hold every request"
    ),
    Expectation(
        "max.message.bytes",
        _ALL,
        _at_least(OUTPUT_BATCH_BYTES_MAX),
        "refuse",
        "a batch of answers would be refused by the broker, and its partition stand still",
    ),
    Expectation("retention.ms", _INPUTS, _at_least(_DAY_MS, or_unlimited=True), "refuse", "what waits would be deleted unread"),
    Expectation(
        "retention.ms",
        _INPUTS,
        _at_least(7 * _DAY_MS, or_unlimited=True),
        "warn",
        "what waits longer, as in an outage over some days, would be deleted unread",
    ),
    Expectation(
        "retention.bytes", _INPUTS, lambda value, _, __: None if int(value) < 0 else "-1", "warn", "a burst would delete what waits unread"
    ),
    Expectation("retention.ms", ("output",), _at_least(_DAY_MS, or_unlimited=True), "warn", "answers would be gone before they are read"),
    Expectation(
        "delete.retention.ms", ("compacted",), _at_least(_HOUR_MS), "warn", "readers that start anew would miss that an order is removed"
    ),
    Expectation(
        "unclean.leader.election.enable",
        _ALL,
        lambda value, _, __: None if value == "false" else "false",
        "refuse",
        "a broker that is behind could become leader, and acknowledged records would vanish",
    ),
    Expectation(
        "min.insync.replicas", _ALL, _enough_in_sync, "refuse", "a record that was acknowledged could be lost with one broker"
    ),
    Expectation(
        "message.timestamp.after.max.ms",
        ("queue", "output", "compacted"),
        _at_least(60_000),
        "warn",
        "a broker whose clock is behind a worker's would refuse what the worker publishes",
    ),
)


def problems_of(spec: TopicSpec, found: Found, wanted: Wanted) -> list[TopicProblem]:
    """What of a topic is not as it must be; the first word about a setting is the only one."""
    problems: dict[str, TopicProblem] = {}
    for row in EXPECTATIONS:
        value = found.settings.get(row.setting)
        # A broker that does not know a setting does not do what it is about.
        if spec.kind not in row.kinds or value is None or row.setting in problems:
            continue
        must = row.must(value, spec, wanted)
        if must is not None:
            text = f"{row.setting} is {value}, must be {must} ({row.why})"
            problems[row.setting] = TopicProblem(spec.name, text, row.reaction)
    return [*problems.values(), *_problems_of_copies(spec.name, found, wanted)]


def _problems_of_copies(name: str, found: Found, wanted: Wanted) -> Sequence[TopicProblem]:
    if found.copies is None or found.in_sync is None:
        return ()
    problems = []
    needed = int(found.settings.get("min.insync.replicas") or 1)
    if found.copies < wanted.copies:
        problems.append(TopicProblem(name, f"has {found.copies} copies, must have {wanted.copies}", "warn"))
    if needed > found.copies:
        text = f"min.insync.replicas is {needed}, must be at most its {found.copies} copies (nothing could be written)"
        problems.append(TopicProblem(name, text, "refuse"))
    elif found.copies > 1 and needed == found.copies:
        text = f"min.insync.replicas is {needed}, must be less than its {found.copies} copies (one broker away, nothing could be written)"
        problems.append(TopicProblem(name, text, "warn"))
    if found.in_sync < max(needed, wanted.min_insync_replicas):
        text = f"{found.in_sync} copies are in sync, and nothing is written below {max(needed, wanted.min_insync_replicas)}"
        problems.append(TopicProblem(name, text, "warn"))
    return problems
