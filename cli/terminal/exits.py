"""How a command ends: its exit code, and what it raises for that."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    NOT_SO = 1
    USAGE = 2
    OUT_OF_REACH = 3
    # 128 + SIGINT and 128 + SIGPIPE, as shells report them.
    INTERRUPTED = 130
    READER_GONE = 141


class CommandFailed(Exception):
    """Ends a command. The text says what happened, what it means for the money, and what to do next."""

    def __init__(self, text: str, code: Exit) -> None:
        super().__init__(text)
        self.code = code


class ReaderGone(Exception):
    """Whoever read our standard output has ended, as `head` does: there is nobody left to tell."""
