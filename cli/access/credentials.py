"""What an operator types or gives to say who asks: token, code, name and words. Nothing of it is proven here.

Invariants:
1. Token and code are in no message.
2. Words are kept as they were given, or refused: nothing is cut or rewritten.

Start with `operator_name`.
"""

import getpass
import os
import pwd
import sys
from pathlib import Path
from typing import Final

import jwt

from cli.access.operator_options import Credentials
from cli.terminal.exits import CommandFailed, Exit
from schemas.commands import REASON_LENGTH_MAX

_TOKEN_BYTES_MAX: Final = 65_536


def usage(text: str) -> CommandFailed:
    """The error for an argument that cannot be meant."""
    return CommandFailed(f"{text} Nothing was changed.", Exit.USAGE)


def words_of(what: str, text: str) -> str:
    """What somebody says, as it was given. Raises CommandFailed for what cannot be stored as it is: nothing is cut or rewritten."""
    storable = "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
    if not (text.strip() and len(text) <= REASON_LENGTH_MAX and storable):
        raise usage(f"The {what} must be 1 to {REASON_LENGTH_MAX} characters of Unicode, without NUL and not blank.")
    return text


def login_name() -> str:
    """The account of the system that this process runs under, whatever the environment says."""
    user = os.geteuid()
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def token_in(file: Path | None) -> str | None:
    """The token in a file, None without a file. Raises CommandFailed."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            token = opened.read(_TOKEN_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise usage(f"The token in {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise usage(f"{file} holds no token.") from None
    return token.removeprefix("Bearer ").strip()


def subject_of(token: str) -> str:
    """Whose token it is, by its own word: workers check it."""
    try:
        subject = jwt.decode(token, options={"verify_signature": False})["sub"]
    except (jwt.PyJWTError, KeyError):
        raise usage("The token file holds no token that names a user (`sub`).") from None
    return str(subject)


def code_of(totp: str | None) -> str:
    """The code of the second factor, asked for where it is not given. Raises CommandFailed without a terminal."""
    if totp is None:
        if not sys.stdin.isatty():
            raise usage("A command needs a code of your second factor: give it with --totp.")
        totp = getpass.getpass("Code of your second factor: ")
    return totp.strip()


def operator_name(credentials: Credentials, token: str | None) -> str:
    """Whom a command is to name: the token's subject; without a token who claims to ask, else the login. Raises CommandFailed."""
    if token is None:
        return words_of("operator's name", credentials.operator or login_name())
    subject = subject_of(token)
    if credentials.operator not in (None, subject):
        raise usage("--operator names somebody else than the token (`sub`): nobody acts under another's name. Leave it out.")
    return subject
