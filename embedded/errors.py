"""Why the services could not be started or went away, one exception for each reaction the operator has.

Every text says what happened, what it means for money and data, and what to do next. The command line shows it as it is and
exits with code 3 (a service is out of reach).
"""


class ServicesError(Exception):
    """The broker or the database is not there. Base of all the others: catch this one to show its text."""


class RetryLaterError(ServicesError):
    """Nothing is wrong with this machine or its data: the same start can succeed later (network, time limit, ports)."""


class FreeDiskSpaceError(ServicesError):
    """The disk is full: free some space, then start again."""


class ChooseOtherDirectoryError(ServicesError):
    """The data directory cannot be used by this start: it is in use, or another version wrote it."""


class ReadLogError(ServicesError):
    """A server ended by itself: the text holds the last lines of its log, which say why."""


class FixHostError(ServicesError):
    """The machine lacks something (a container engine, a right, a system account): fix it or use another mode."""
