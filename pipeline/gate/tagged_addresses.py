"""Networks on which one address stands for many accounts, told apart by a tag (memo): an address is nothing there without its tag.

Exchanges and custodians have one address for all of their customers. What arrives without the tag belongs to nobody, and what arrives under
a wrong one to somebody else; neither comes back by itself. So a tag is always asked for, also where the receiver needs none: "0" does no
harm.

| network | address | tag |
|---|---|---|
| `XRP` | classic address: base58check in its own alphabet, version 0, 20 bytes | 0 to 4294967295 |
| `XLM` | strkey `G…`: base32 with CRC-16 | memo id up to 2^64 - 1, or text of up to 28 bytes |
| `TON` | user-friendly form: base64 of 36 bytes with CRC-16, for the main network | comment |
| `EOS` | account name: up to 12 of `a` to `z`, `1` to `5` and `.`; it has no checksum | memo |
| `ATOM` | bech32 with the prefix `cosmos`, 20 or 32 bytes | memo |

Refused: X-addresses of XRP and muxed addresses of Stellar (`M…`), which carry a tag of their own inside, and TON's raw form, which has no
checksum. Sources: XRP Ledger, "Addresses", and XLS-5; Stellar, SEP-23 and "Memos"; TON, "Address formats"; EOSIO, "Account names"; Cosmos
SDK, "Bech32 addresses". Tags are made of the characters that pipeline/gate/addresses allows, up to 120.

Start with `TAGGED`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pipeline.gate.address_encoding import (
    BECH32_CONSTANT,
    RIPPLE_ALPHABET,
    base32,
    base58check,
    base64_either,
    bech32_checksum,
    bech32_groups,
    crc16_xmodem,
    eight_bits,
)

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,27}")
_EOS_NAME: Final = re.compile(r"[a-z1-5](?:[a-z1-5.]{0,10}[a-z1-5])?")
_STELLAR_ACCOUNT: Final = 6 << 3
_STELLAR_MUXED: Final = 12 << 3
_TON_BOUNCEABLE: Final = 0x11
_TON_NON_BOUNCEABLE: Final = 0x51
_TON_TEST_ONLY: Final = 0x80
_TON_WORKCHAINS: Final = frozenset({0x00, 0xFF})


@dataclass(frozen=True, slots=True)
class TaggedNetwork:
    """Both checks answer why a text is none, as the end of a sentence; None when it is one."""

    address_problem: Callable[[str], str | None]
    tag_problem: Callable[[str], str | None]


NO_TAG: Final = (
    "this network needs an address tag (memo): without it nobody can tell whose the money is. Take it from where the address is from; "
    "where the receiver asks for none, use 0"
)


def _ripple_problem(address: str) -> str | None:
    if address[:1] in {"X", "T"}:
        return "it is an X-address, which has its tag inside: give the classic address (r…) and the tag apart"
    payload = base58check(address, RIPPLE_ALPHABET)
    if payload is None:
        return "its checksum is wrong, or it is no classic address"
    return None if len(payload) == 21 and payload[0] == 0 else "it is no account of the XRP Ledger"


def _ripple_tag_problem(tag: str) -> str | None:
    return None if _NUMBER.fullmatch(tag) and int(tag) < 1 << 32 else "the destination tag must be a whole number from 0 to 4294967295"


def _stellar_problem(address: str) -> str | None:
    decoded = base32(address)
    if decoded is None or len(decoded) < 3 or crc16_xmodem(decoded[:-2]) != int.from_bytes(decoded[-2:], "little"):
        return "its checksum is wrong, or it is no strkey (SEP-23)"
    if decoded[0] == _STELLAR_MUXED:
        return "it is a muxed address, which has its memo inside: give the address (G…) and the memo apart"
    return None if decoded[0] == _STELLAR_ACCOUNT and len(decoded) == 35 else "it is no account of Stellar"


def _stellar_memo_problem(memo: str) -> str | None:
    if memo.isdecimal():
        # A number that is no id would be taken for text by some and for an id by others.
        return None if _NUMBER.fullmatch(memo) and int(memo) < 1 << 64 else "a memo of digits must be an id from 0 to 18446744073709551615"
    return None if len(memo.encode()) <= 28 else "a text memo has 28 bytes at most"


def _ton_problem(address: str) -> str | None:
    decoded = base64_either(address) if len(address) == 48 else None
    if decoded is None or crc16_xmodem(decoded[:-2]) != int.from_bytes(decoded[-2:], "big"):
        return "its checksum is wrong, or it is not the user-friendly form of 48 characters"
    if decoded[0] & _TON_TEST_ONLY:
        return "it is an address of the test network"
    known = decoded[0] in {_TON_BOUNCEABLE, _TON_NON_BOUNCEABLE} and decoded[1] in _TON_WORKCHAINS
    return None if known else "it is no address of TON's workchains"


def _eos_problem(address: str) -> str | None:
    return None if _EOS_NAME.fullmatch(address) else "it is no account name: up to 12 of a to z, 1 to 5 and dots, not at its ends"


def _cosmos_problem(address: str) -> str | None:
    groups = bech32_groups(address, "cosmos")
    if groups is None or bech32_checksum("cosmos", groups) != BECH32_CONSTANT:
        return "its checksum is wrong, or it is no address of the Cosmos Hub (cosmos1…)"
    account = eight_bits(groups[:-6])
    return None if account is not None and len(account) in {20, 32} else "it has not the length of an account"


def _any_text(_memo: str) -> str | None:
    return None


TAGGED: Final[dict[str, TaggedNetwork]] = {
    "XRP": TaggedNetwork(_ripple_problem, _ripple_tag_problem),
    "XLM": TaggedNetwork(_stellar_problem, _stellar_memo_problem),
    "TON": TaggedNetwork(_ton_problem, _any_text),
    "EOS": TaggedNetwork(_eos_problem, _any_text),
    "ATOM": TaggedNetwork(_cosmos_problem, _any_text),
}
