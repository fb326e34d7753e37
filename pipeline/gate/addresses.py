"""Addresses: whether a text can be an address of a network, by its format and by its checksum where the network has one.

A slip of one character is money that nobody gets back, so a form without a checksum is refused where the network knows one with it.

| networks | form | source |
|---|---|---|
| `ETH`, `BSC`, `ARBITRUM`, `OPTIMISM`, `BASE`, `MATIC`, `AVAXC` | 20 bytes in hex with the letters' case as checksum | EIP-55 |
| `BTC`, `SEGWITBTC` | base58check, version 0 or 5; bech32 (witness version 0), bech32m (1 to 16) | Bitcoin; BIP 173, BIP 350 |
| `TRX` | base58check, version 0x41 | TRON, "Account address format" |
| `SOL` | base58 of 32 bytes, which has no checksum | Solana, "Account addresses" |
| `XRP`, `XLM`, `TON`, `EOS`, `ATOM` | each its own, and a tag that is never left out | pipeline/gate/tagged_addresses |

Names are the venue's own (Binance, "All Coins' Information"). Invariant: a network that is not listed takes no address, and one
that has tags takes none without its tag.

Start with `address_problem`.
"""

import re
from collections.abc import Callable
from typing import Final

from pipeline.gate.address_encoding import (
    BECH32_CONSTANT,
    BECH32M_CONSTANT,
    base58,
    base58check,
    bech32_checksum,
    bech32_groups,
    eight_bits,
)
from pipeline.gate.tagged_addresses import NO_TAG, TAGGED

_EVM: Final = re.compile(r"0x[0-9a-fA-F]{40}")
# Letters, digits and the marks that memos have: nothing that could end a field of a form.
_TAG: Final = re.compile(r"[0-9A-Za-z_.\-]{1,120}")
_LENGTH_MAX: Final = 128


def address_problem(network: str, address: str, tag: str | None = None) -> str | None:
    """Why a text is no address of a network, as the end of a sentence; None when it is one."""
    check = _CHECKS.get(network)
    if check is None:
        return f"addresses of this network are not known here; the known networks are: {', '.join(NETWORKS)}"
    if tag is not None and not _TAG.fullmatch(tag):
        return "the address tag has other characters than letters, digits, `_`, `.` and `-`, or more than 120 of them"
    tagged = TAGGED.get(network)
    if tagged is not None:
        problem = NO_TAG if tag is None else tagged.tag_problem(tag)
        if problem is not None:
            return problem
    return check(address) if len(address) <= _LENGTH_MAX else "it is longer than any address"


def _evm_problem(address: str) -> str | None:
    if not _EVM.fullmatch(address):
        return "it is not 0x and 40 hexadecimal digits"
    if address != checksummed(address):
        return "its checksum is wrong or missing (EIP-55): the case of its letters must be as the wallet shows it"
    return None


def checksummed(address: str) -> str:
    """An EVM address, `0x` and 40 hexadecimal digits, with the case of its letters as EIP-55 has it."""
    digits = address[2:].lower()
    digest = keccak_256(digits.encode()).hex()
    return "0x" + "".join(letter.upper() if int(nibble, 16) >= 8 else letter for letter, nibble in zip(digits, digest, strict=False))


def _bitcoin_problem(address: str) -> str | None:
    if address[:3].lower() == "bc1":
        return _bech32_problem(address)
    payload = base58check(address)
    if payload is None:
        return "its checksum is wrong, or it is neither base58check nor bech32"
    return None if len(payload) == 21 and payload[0] in {0x00, 0x05} else "it is not an address of Bitcoin's main network"


def _tron_problem(address: str) -> str | None:
    payload = base58check(address)
    if payload is None:
        return "its checksum is wrong, or it is no base58check"
    return None if len(payload) == 21 and payload[0] == 0x41 else "it is not an address of TRON"


def _solana_problem(address: str) -> str | None:
    payload = base58(address)
    return None if payload is not None and len(payload) == 32 else "it is not the base58 form of 32 bytes"


def _bech32_problem(address: str) -> str | None:
    if address not in {address.lower(), address.upper()}:
        return "it mixes capitals and small letters, which bech32 forbids"
    data = bech32_groups(address, "bc")
    if data is None or len(data) < 8:
        return "it has characters that bech32 does not have, or not its length"
    version, program = data[0], eight_bits(data[1:-6])
    if program is None or version > 16 or not 2 <= len(program) <= 40 or (version == 0 and len(program) not in {20, 32}):
        return "it is no witness program (BIP 173)"
    if bech32_checksum("bc", data) != (BECH32_CONSTANT if version == 0 else BECH32M_CONSTANT):
        return "its checksum is wrong (bech32 for witness version 0, bech32m for the later ones)"
    return None


_ROTATIONS: Final = (
    (0, 36, 3, 41, 18),
    (1, 44, 10, 45, 2),
    (62, 6, 43, 15, 61),
    (28, 55, 25, 21, 56),
    (27, 20, 39, 8, 14),
)
_LANE: Final = (1 << 64) - 1
_RATE: Final = 136


def _round_constants() -> tuple[int, ...]:
    """The 24 round constants of Keccak-f[1600], from its linear feedback shift register (Keccak reference, section 1.2)."""
    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for exponent in range(7):
            if register & 1:
                constant |= 1 << ((1 << exponent) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return tuple(constants)


_ROUND_CONSTANTS: Final = _round_constants()


def _rotated(lane: int, count: int) -> int:
    return ((lane << count) | (lane >> (64 - count))) & _LANE


def _permuted(a: list[list[int]]) -> list[list[int]]:
    """Keccak-f[1600]; `a[x][y]` as in the reference."""
    five = range(5)
    for constant in _ROUND_CONSTANTS:
        columns = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in five]
        parity = [columns[(x - 1) % 5] ^ _rotated(columns[(x + 1) % 5], 1) for x in five]
        b = [[0] * 5 for _ in five]
        for x in five:
            for y in five:
                b[y][(2 * x + 3 * y) % 5] = _rotated(a[x][y] ^ parity[x], _ROTATIONS[x][y])
        a = [[b[x][y] ^ (~b[(x + 1) % 5][y] & b[(x + 2) % 5][y] & _LANE) for y in five] for x in five]
        a[0][0] ^= constant
    return a


def keccak_256(message: bytes) -> bytes:
    """Keccak-256 with its original padding, as Ethereum has it; `hashlib.sha3_256` pads otherwise."""
    padded = message + b"\x01" + bytes(_RATE - 1 - len(message) % _RATE)
    padded = padded[:-1] + bytes([padded[-1] | 0x80])
    state = [[0] * 5 for _ in range(5)]
    for start in range(0, len(padded), _RATE):
        for position in range(_RATE // 8):
            lane = int.from_bytes(padded[start + 8 * position : start + 8 * position + 8], "little")
            state[position % 5][position // 5] ^= lane
        state = _permuted(state)
    return b"".join(state[position % 5][position // 5].to_bytes(8, "little") for position in range(4))


_CHECKS: Final[dict[str, Callable[[str], str | None]]] = {
    **dict.fromkeys(("ETH", "BSC", "ARBITRUM", "OPTIMISM", "BASE", "MATIC", "AVAXC"), _evm_problem),
    **dict.fromkeys(("BTC", "SEGWITBTC"), _bitcoin_problem),
    "TRX": _tron_problem,
    "SOL": _solana_problem,
    **{network: tagged.address_problem for network, tagged in TAGGED.items()},
}
NETWORKS: Final = tuple(_CHECKS)
