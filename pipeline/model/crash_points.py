"""The named places at which a worker may die without anybody being able to tell. One test each: `test_resumes_from_<point>`."""

from collections.abc import Callable
from enum import StrEnum


class CrashPoint(StrEnum):
    """In the order in which a record passes them."""

    BATCH_TAKEN = "batch_taken"
    BEFORE_INTAKE_COMMIT = "before_intake_commit"
    AFTER_INTAKE_COMMIT = "after_intake_commit"
    BEFORE_SUBMITTING_COMMIT = "before_submitting_commit"
    AFTER_SUBMITTING_COMMIT = "after_submitting_commit"
    AFTER_EXCHANGE_CALL = "after_exchange_call"
    AFTER_OUTCOME_COMMIT = "after_outcome_commit"
    BEFORE_SETTLEMENT_COMMIT = "before_settlement_commit"
    AFTER_SETTLEMENT_COMMIT = "after_settlement_commit"
    BEFORE_SET_ASIDE_COMMIT = "before_set_aside_commit"
    AFTER_SET_ASIDE_COMMIT = "after_set_aside_commit"
    BEFORE_KAFKA_COMMIT = "before_kafka_commit"
    AFTER_KAFKA_COMMIT = "after_kafka_commit"


# Called at each point with its name and the topic of the batch; does nothing outside tests.
Reached = Callable[[CrashPoint, str], None]


def pass_by(point: CrashPoint, topic: str) -> None:
    """What happens at a crash point in production: nothing."""
