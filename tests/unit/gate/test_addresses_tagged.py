"""Networks with tags: vectors of their standards, slips that the checksums must find, and that nothing leaves without its tag."""

from typing import Any

import pytest

from pipeline.gate.address_encoding import base32, base64_either, crc16_xmodem
from pipeline.gate.addresses import NETWORKS, address_problem
from pipeline.gate.payouts import payout_refusal
from pipeline.gate.tagged_addresses import TAGGED
from pipeline.intake import decide
from pipeline.model.halts import NO_HALTS
from pipeline.model.withdrawal import AllowedAddress, Network
from schemas.reasons import ReasonCode
from tests.unit.builders import NOW, arrival, changes_of, finals_of
from tests.unit.withdrawal_builders import ALLOWED, NETWORK, asking, payee, withdrawal_of, withdrawing_state

GOOD: dict[str, tuple[str, ...]] = {
    # XRP Ledger, "Addresses": special addresses and examples; XLS-5's classic address.
    "XRP": (
        "rrrrrrrrrrrrrrrrrrrrrhoLvTp", "rrrrrrrrrrrrrrrrrrrrBZbvji", "rHb9CJAWyB4rj91VRWn96DkukG4bwdtyTh",
        "r9cZA1mLK5R5Am25ArfXFmqgNwjZgnfk59", "rvYAfWj5gh67oV6fW32ZzP3Aw4Eubs59B",
    ),
    # SEP-23, "Valid test cases", 1.
    "XLM": ("GA7QYNF7SOWQ3GLR2BGMZEHXAVIRZA4KVWLTJJFC7MGXUA74P7UJVSGZ",),
    # TON, "Address formats": one account, bounceable and not, and in plain base64.
    "TON": (
        "EQDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff-W72r5gqPrHF", "UQDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff-W72r5gqPuwA",
        "EQDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff+W72r5gqPrHF",
    ),
    "EOS": ("eosio", "eosio.token", "binancecleos", "a", "111111111111"),
    # Module accounts of the Cosmos Hub: fees, distribution, governance.
    "ATOM": (
        "cosmos17xpfvakm2amg962yls6f84z3kell8c5lserqta", "cosmos1jv65s3grqf6v6jl3dp4t6c9t9rk99cd88lyufl",
        "cosmos10d07y265gmmuvt4z0w9aw880jnsr700j6zn9kn",
    ),
}  # fmt: skip
WRONG: dict[str, tuple[str, ...]] = {
    # X-addresses of the main and the test network (XLS-5): they have a tag of their own inside. A secret seed, and Bitcoin's alphabet.
    "XRP": (
        "X7AcgcsBL6XDcUb289X4mJ8djcdyKaB5hJDWMArnXr61cqZ", "T719a5UwUCnEs54UsxG9CJYYDhwmFCqkr7wxCcNcfZ6p5GZ",
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "rHb9CJAWyB4rj91VRWn96DkukG4bwdtyT", "", "r",
    ),
    # SEP-23: a muxed address, and "Invalid test cases" 1, 3, 4 and 5.
    "XLM": (
        "MA7QYNF7SOWQ3GLR2BGMZEHXAVIRZA4KVWLTJJFC7MGXUA74P7UJUAAAAAAAAAAAACJUQ", "GAAAAAAAACGC6",
        "GA7QYNF7SOWQ3GLR2BGMZEHXAVIRZA4KVWLTJJFC7MGXUA74P7UJVSGZA", "GA7QYNF7SOWQ3GLR2BGMZEHXAVIRZA4KVWLTJJFC7MGXUA74P7UJUACUSI",
        "G47QYNF7SOWQ3GLR2BGMZEHXAVIRZA4KVWLTJJFC7MGXUA74P7UJVP2I",
        "ga7qynf7sowq3glr2bgmzehxavirza4kvwltjjfc7mgxua74p7ujvsgz", "",
    ),
    # TON, "Address formats": the same account on the test network, and its raw form, which has no checksum. Both forms of base64 mixed.
    "TON": (
        "kQDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff-W72r5gqPgpP", "0QDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff-W72r5gqPleK",
        "0:ca6e321c7cce9ecedf0a8ca2492ec8592494aa5fb5ce0387dff96ef6af982a3e", "EQDKbjIcfM6ezt8KjKJJLshZJJSqX7XOA4ff-W72r5gqPrH", "",
    ),
    "EOS": ("Eosio", "eosio6", "eosio.", ".eosio", "aaaaaaaaaaaaa", "two words", ""),
    "ATOM": (
        "cosmosvaloper17xpfvakm2amg962yls6f84z3kell8c5lserqta", "osmo17xpfvakm2amg962yls6f84z3kell8c5lserqta",
        "Cosmos17xpfvakm2amg962yls6f84z3kell8c5lserqta", "cosmos1", "cosmos1qqqqqq", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("network", GOOD)
def test_address_of_a_tagged_network_is_taken_with_its_tag_and_there_alone(network: str) -> None:
    """Each form passes on its own network, and on no other of another form."""
    for address in GOOD[network]:
        assert address_problem(network, address, "7") is None, address
        for other in set(NETWORKS) - {network}:
            if not (other == "EOS" and address.islower() and len(address) <= 12):
                assert address_problem(other, address, "7") is not None, (other, address)


@pytest.mark.parametrize("network", WRONG)
def test_address_of_a_tagged_network_that_is_none_is_refused(network: str) -> None:
    """The standards' own counterexamples, addresses with a tag of their own inside, other networks, and fragments."""
    for address in WRONG[network]:
        assert address_problem(network, address, "7") is not None, address


@pytest.mark.parametrize("network", sorted(set(GOOD) - {"EOS"}))
def test_tagged_address_with_one_character_changed_is_refused(network: str) -> None:
    """The checksum finds each single slip, wherever it is; account names of EOS have none."""
    for address in GOOD[network]:
        for position in range(len(address)):
            for other in ("q", "Q", "7"):
                changed = address[:position] + other + address[position + 1 :]
                # The two forms of base64 are one address.
                if changed.replace("-", "+") != address.replace("-", "+"):
                    assert address_problem(network, changed, "7") is not None, changed


@pytest.mark.parametrize("network", sorted(TAGGED))
def test_address_without_its_tag_is_none(network: str) -> None:
    """What arrives without a tag belongs to nobody: the address list does not take it, and no payout to it leaves."""
    address = GOOD[network][0]
    assert "needs an address tag" in (address_problem(network, address) or "")
    assert "needs an address tag" in (address_problem(network, address, None) or "")
    assert address_problem(network, address, "") is not None
    known = Network("USDT", network, True, NETWORK.fee, NETWORK.amount_min, NETWORK.amount_max, NETWORK.amount_step, NOW)
    listed = AllowedAddress(network, address, "", ALLOWED.added_at)
    changes = changes_of()
    decide([arrival(asking(network=network, address=address))], withdrawing_state(networks=(known,), addresses=(listed,)), changes)
    [final] = finals_of(changes)
    assert final.reason_code is ReasonCode.ADDRESS_NOT_ALLOWED
    assert not changes.withdrawals


@pytest.mark.parametrize("network", sorted(TAGGED))
def test_payout_without_its_tag_never_leaves(network: str) -> None:
    """Also one that was accepted and listed before this network was known to need one."""
    address = GOOD[network][0]
    without = withdrawal_of(network=network, address=address)
    known = payee(addresses=(AllowedAddress(network, address, "", ALLOWED.added_at),))
    refusal = payout_refusal(without, known, known.left_usd, NO_HALTS, NOW)
    assert refusal is not None and refusal.code is ReasonCode.ADDRESS_NOT_ALLOWED
    known = payee(addresses=(AllowedAddress(network, address, "7", ALLOWED.added_at),))
    assert payout_refusal(withdrawal_of(network=network, address=address, address_tag="7"), known, known.left_usd, NO_HALTS, NOW) is None


TAGS: list[tuple[str, str, bool]] = [
    ("XRP", "0", True), ("XRP", "4294967295", True), ("XRP", "4294967296", False), ("XRP", "01", False), ("XRP", "-1", False),
    ("XRP", "1.0", False), ("XRP", "memo", False),
    ("XLM", "18446744073709551615", True), ("XLM", "18446744073709551616", False), ("XLM", "007", False), ("XLM", "a" * 28, True),
    ("XLM", "a" * 29, False), ("XLM", "9" * 28, False),
    *((network, "a" * 120, True) for network in ("TON", "EOS", "ATOM")), *((network, "a" * 121, False) for network in sorted(TAGGED)),
    *((network, "1&amount=9", False) for network in sorted(TAGGED)),
]  # fmt: skip


@pytest.mark.parametrize(("network", "tag", "good"), TAGS)
def test_tag_has_its_networks_form(network: str, tag: str, good: bool) -> None:
    """A destination tag is 32 bits, a memo id 64, a text memo 28 bytes; a number that is neither is not taken for text."""
    assert (address_problem(network, GOOD[network][0], tag) is None) is good


def test_every_network_with_tags_has_its_vectors() -> None:
    """A new one needs its own."""
    assert set(GOOD) == set(WRONG) == set(TAGGED) <= set(NETWORKS)


def test_checksum_and_bases_are_the_known_ones() -> None:
    """CRC-16/XMODEM's check value; base32 and base64 in one form each."""
    assert crc16_xmodem(b"123456789") == 0x31C3
    assert base32("MZXW6YTB") == b"fooba" and base32("MZXW6YTBOI") == b"foobar"
    wrong: list[Any] = ["MZXW6YTBOJ", "mzxw6ytb", "MZXW6YT1", "A"]
    assert [base32(text) for text in wrong] == [None] * 4
    assert base64_either("-_-_") == base64_either("+/+/") == b"\xfb\xff\xbf"
    assert base64_either("+_+_") is None and base64_either("a") is None
