"""Who sent a request: API key, HMAC-SHA256 signature, timestamp and receive window, by Binance's rules.

Source: https://developers.binance.com/docs/binance-spot-api-docs/rest-api/request-security. The signature covers the query string and
the body exactly as they were received, concatenated without a separator, without the signature parameter itself.
"""

import hmac
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote_plus

from simulator import refusals

RECEIVE_WINDOW_MS_DEFAULT: Final = 5_000
AHEAD_MS_MAX: Final = 1_000
KEYS_NAME: Final = "keys.json"
_KEY_FORMAT: Final = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_DIGITS: Final = re.compile(r"[0-9]{1,20}")


class KeyStore:
    """API keys and their secrets, kept apart from the log in a file that only the owner can read."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / KEYS_NAME
        self._secrets: dict[str, bytes] = {}
        if self._path.exists():
            stored: dict[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
            self._secrets = {key: secret.encode() for key, secret in stored.items()}

    def secret(self, api_key: str) -> bytes | None:
        return self._secrets.get(api_key)

    def put(self, secrets: dict[str, str]) -> None:
        """Adds or replaces secrets by API key, durably: the file is whole after a crash, old or new."""
        self._secrets |= {key: secret.encode() for key, secret in secrets.items()}
        temporary = self._path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({key: secret.decode() for key, secret in self._secrets.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a verified signature proves: whose request, when it was made, and how long it is good for."""

    api_key: str
    timestamp_ms: int
    receive_window_ms: int


def parse_parameters(query: str, body: str) -> dict[str, str]:
    """Parameters of the query string and a form body; where both have one, the query string wins (Binance, General information)."""
    found: dict[str, str] = {}
    for source in (query, body):
        if not source:
            continue
        is_plain = "%" not in source and "+" not in source
        seen: dict[str, str] = {}
        for pair in source.split("&"):
            name, _, value = pair.partition("=")
            if not is_plain:
                name, value = unquote_plus(name), unquote_plus(value)
            if name in seen:
                raise refusals.Refusal(-1101, "Duplicate values for a parameter detected.")
            seen[name] = value
        found = seen | found
    return found


def _without_signature(source: str) -> str:
    if source.startswith("signature="):
        return source.partition("&")[2]
    before, found, after = source.partition("&signature=")
    if not found:
        return source
    _, separator, rest = after.partition("&")
    return before + separator + rest


def check_api_key(api_key: str | None) -> str:
    """The API key of the header; raises Refusal -2014 where it is absent or malformed."""
    if api_key is None or _KEY_FORMAT.fullmatch(api_key) is None:
        raise refusals.bad_key_format()
    return api_key


def _integer(parameters: dict[str, str], name: str) -> int | None:
    text = parameters.get(name)
    if text is None:
        return None
    if _DIGITS.fullmatch(text) is None:
        raise refusals.illegal_characters(name, "^[0-9]{1,20}$")
    return int(text)


def verify(
    keys: KeyStore, api_key: str | None, query: str, body: str, parameters: dict[str, str], *, now_us: int, receive_window_ms_max: int
) -> Signed:
    """Verifies a signed request, or raises Refusal. `now_us` is the server's time."""
    key = check_api_key(api_key)
    timestamp_ms = _integer(parameters, "timestamp")
    if timestamp_ms is None:
        raise refusals.missing("timestamp")
    window_ms = _integer(parameters, "recvWindow")
    if window_ms is None:
        window_ms = RECEIVE_WINDOW_MS_DEFAULT
    if window_ms > receive_window_ms_max:
        raise refusals.window_too_wide(receive_window_ms_max)
    signature = parameters.get("signature")
    if not signature:
        raise refusals.missing("signature")
    now_ms = now_us // 1000
    if timestamp_ms >= now_ms + AHEAD_MS_MAX:
        raise refusals.ahead_of_time()
    if now_ms - timestamp_ms > window_ms:
        raise refusals.outside_window()
    secret = keys.secret(key)
    if secret is None:
        raise refusals.unknown_key()
    payload = _without_signature(query) + _without_signature(body)
    expected = hmac.digest(secret, payload.encode(), "sha256").hex()
    if not hmac.compare_digest(expected.encode(), signature.encode()):
        raise refusals.bad_signature()
    return Signed(key, timestamp_ms, window_ms)
