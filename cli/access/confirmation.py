"""What cannot be undone asks first: the one list of such commands, and the question.

Invariant: nothing is changed or sent before the answer. Without a terminal there is nobody to ask, so `--yes` must say it.

Start with `confirm`.
"""

import sys
from typing import Final

import typer

from cli.access.credentials import usage
from cli.terminal.exits import CommandFailed, Exit

# Each of these takes `--yes`; what the question says that it does.
IRREVERSIBLE: Final[dict[str, str]] = {
    "users close": "closes the user for good: nothing opens it again",
    "users enrol-totp --replace": "refuses every code of the second factor that the user has, from now on",
    "keys add --replace": "puts another key in the place of one that is in use: the older one is gone here",
    "keys revoke": "ends the use of the key here: orders that rest at the exchange can no longer be looked up or canceled with it",
    "balances import": "books what the exchange account holds, once and for all: it cannot be taken back or imported again",
    "quarantine drop": "gives it up for good: nothing publishes the record again, and what it names stays as it is",
    "offsets accept-loss": "lets the partition go on without the missing records: whoever sent them gets no answer from here",
    "withdrawals approve": "lets the money leave: no chain gives it back",
}


def confirm(command: str, target: str, yes: bool) -> None:
    """Asks whether a command of the list is meant. Raises CommandFailed where it is not, or where nobody can be asked."""
    if yes:
        return
    what = f"`orchestrator {command}` on {target} {IRREVERSIBLE[command]}."
    if not sys.stdin.isatty():
        raise usage(f"{what} There is no terminal to ask at: say --yes where it is meant.")
    if not typer.confirm(f"{what} Do it?", err=True):
        raise CommandFailed("Nothing was changed.", Exit.NOT_SO)
