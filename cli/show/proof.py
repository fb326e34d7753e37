"""What `submit` sends in the headers of a request: the user's token, and a one-time code where real money moves.

Invariants:
1. Token, codes and secret are in no message and no repr.
2. A code is accepted once: one that was given goes with the first line that moves real money, and of one that is made here the next line
   waits for the next.

Start with `Proof`.
"""

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Final

import orjson
import pyotp

from cli.access.credentials import token_in, usage
from cli.terminal.lines import Line
from cli.terminal.output import say
from schemas.orders import Mode

_SECRET_BYTES_MAX: Final = 4_096
_STEP_SECONDS: Final = 30
# A little after the step has begun here, it has begun at the broker too.
_MARGIN_SECONDS: Final = 0.5


class Proof:
    """Makes the headers of one line after the other. `clock` gives seconds since 1970.

    Raises CommandFailed for files that cannot be used.
    """

    def __init__(
        self, token_file: Path | None, totp: str | None, totp_secret_file: Path | None, clock: Callable[[], float] = time
    ) -> None:
        if totp is not None and totp_secret_file is not None:
            raise usage("Give the code with --totp, or the secret to make codes with --totp-secret-file.")
        self._token = token_in(token_file)
        self._totp = None if totp is None else totp.strip()
        self._secret = None if totp_secret_file is None else _secret_in(totp_secret_file)
        self._clock = clock
        self._last_step = 0

    async def headers(self, line: Line) -> list[tuple[str, bytes]]:
        """The headers of a line. Where it needs a code and the last one was just used, waits for the next: up to 30 s."""
        found = [] if self._token is None else [("authorization", f"Bearer {self._token}".encode())]
        if (self._totp is not None or self._secret is not None) and _moves_real_money(line.value):
            code = await self._code(line.number)
            if code is not None:
                found.append(("x-totp", code.encode()))
        return found

    async def _code(self, number: int) -> str | None:
        if self._secret is None:
            given, self._totp = self._totp, None
            return given
        if (step := int(self._clock()) // _STEP_SECONDS) <= self._last_step:
            left = (self._last_step + 1) * _STEP_SECONDS - self._clock() + _MARGIN_SECONDS
            say(f"line {number} waits {left:.0f} s for the next code: each is accepted once.")
            await asyncio.sleep(left)
            step = int(self._clock()) // _STEP_SECONDS
        self._last_step = step
        return str(pyotp.TOTP(self._secret).at(step * _STEP_SECONDS))


def _moves_real_money(value: bytes) -> bool:
    """Whether a line may need a code: what is no cancel and not simulated, and what cannot be read, which is refused anyway."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and document.get("mode") != Mode.PAPER.value and document.get("type") != "cancel"


def _secret_in(file: Path) -> str:
    """The second factor's secret: base32, or the `otpauth` URI that an operator was shown.

    Raises CommandFailed, whose text has nothing of it.
    """
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            say(f"warning: {file} can be read by others on this machine. chmod 600 {file}")
        with file.open("rb") as opened:
            text = opened.read(_SECRET_BYTES_MAX).decode("ascii").strip()
    except OSError as error:
        raise usage(f"The secret in {file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError:
        raise usage(f"{file} holds no secret of a second factor.") from None
    try:
        secret = pyotp.parse_uri(text).secret if text.startswith("otpauth:") else text.replace(" ", "")
        pyotp.TOTP(secret).at(0)
    except ValueError:
        # Without the error behind it: its text may hold the secret.
        secret = ""
    if not secret:
        raise usage(f"{file} holds neither a secret in base32 nor an otpauth URI.")
    return str(secret)
