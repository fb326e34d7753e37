"""How addresses are written: base58, bech32, base32 and base64, with their checksums. What a network asks of them is elsewhere.

Every function answers None for a text that is not whole: of another alphabet, with padding that is not zero, or under another checksum.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

BITCOIN_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
RIPPLE_ALPHABET: Final = "rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz"
BECH32_CONSTANT: Final = 1
BECH32M_CONSTANT: Final = 0x2BC830A3
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def base58(text: str, alphabet: str = BITCOIN_ALPHABET) -> bytes | None:
    """The bytes of a base58 text; its first letter stands for a zero byte."""
    number = 0
    for character in text:
        digit = alphabet.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def base58check(text: str, alphabet: str = BITCOIN_ALPHABET) -> bytes | None:
    """Version and payload; None where the checksum is not theirs."""
    decoded = base58(text, alphabet)
    if decoded is None or len(decoded) < 5:
        return None
    payload, checksum = decoded[:-4], decoded[-4:]
    return payload if sha256(sha256(payload).digest()).digest()[:4] == checksum else None


def bech32_groups(text: str, prefix: str) -> list[int] | None:
    """The groups of five bits behind `prefix` and its separator, checksum included; None for mixed case and another alphabet or length."""
    if text not in {text.lower(), text.upper()} or not text.lower().startswith(prefix + "1") or len(text) > 90:
        return None
    data = [_BECH32.find(character) for character in text[len(prefix) + 1 :].lower()]
    return None if -1 in data or len(data) < 7 else data


def bech32_checksum(prefix: str, groups: Iterable[int]) -> int:
    """1 for bech32 (BIP 173), another constant for bech32m (BIP 350)."""
    expanded = [*(ord(letter) >> 5 for letter in prefix), 0, *(ord(letter) & 31 for letter in prefix)]
    return _polymod([*expanded, *groups])


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if (top >> bit) & 1 else 0
    return checksum


def eight_bits(groups: Sequence[int]) -> bytes | None:
    """Groups of five bits as bytes; None where the padding is longer than needed or not zero."""
    number = 0
    for group in groups:
        number = number << 5 | group
    padding = len(groups) * 5 % 8
    if padding >= 5 or number & ((1 << padding) - 1):
        return None
    return (number >> padding).to_bytes(len(groups) * 5 // 8, "big")


def base32(text: str) -> bytes | None:
    """The bytes of a base32 text (RFC 4648) without padding signs, in the one form that they have."""
    try:
        decoded = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        return None
    return decoded if base64.b32encode(decoded).decode().rstrip("=") == text else None


def base64_either(text: str) -> bytes | None:
    """The bytes of a base64 text in its plain or its URL form (RFC 4648), not mixed."""
    if {"+", "/"} & set(text) and {"-", "_"} & set(text):
        return None
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error:
        return None


def crc16_xmodem(message: bytes) -> int:
    """CRC-16/XMODEM: polynomial 0x1021, from 0, not reflected."""
    return binascii.crc_hqx(message, 0)
