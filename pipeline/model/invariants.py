"""Exceptions named for the reaction they call for."""


class InvariantViolation(Exception):
    """Something that cannot happen has happened. The worker stops without writing; a person must look."""


class MustStop(InvariantViolation):
    """It concerns the partition, not one record: nothing is tried again in parts or set aside, as that could do harm. The worker stops."""


class RowUnreadable(InvariantViolation):
    """A stored row is not what this system writes. Whatever it is about is left as it is; nothing else has to wait for it."""


class Fenced(Exception):
    """Another worker owns this input partition now. This process ends; what it had under way is the new owner's to finish."""


class Retryable(Exception):
    """A dependency is out of reach for now. The same step is run again, within a bound."""


class Unpublished(Retryable):
    """Another input partition has stored the newest word about an order, but Kafka does not have it yet. It comes within moments."""


class LocksMissing(Retryable):
    """A step has found that it needs more locks than it took. It begins again and takes them all, in their order."""
