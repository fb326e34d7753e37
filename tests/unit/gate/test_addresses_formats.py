"""Addresses of the known networks: vectors of the standards, and slips that their checksums must find."""

import pytest

from pipeline.gate.addresses import NETWORKS, address_problem, checksummed, keccak_256

# EIP-55, "Test Cases".
EIP_55 = (
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
)
BITCOIN = (
    # The first block's coinbase; a script address.
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
    "3P14159f73E4gFr7JterCCQh9QjiTjiZrG",
    # BIP 173 and BIP 350, "Test vectors".
    "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "bc1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3qccfmv3",
    "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y",
    "bc1sw50qgdz25j",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
)
BITCOIN_WRONG = (
    # BIP 350, "invalid": bech32 where bech32m belongs and the other way round, wrong length, wrong padding, mixed case.
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
    "bc1q0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq24jc47",
    "bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4",
    "BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R",
    "bc1pw5dgrnzv",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav",
    "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf",
    "bc1gmk9yu",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8F3T4",
    # Another network's, and one of the test network.
    "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx",
    "mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn",
    "",
    "bc1",
)
TRON = ("TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t", "TYDmtuWL8bsyjvcauUTerpfYyVhFtBjqyo")
SOLANA = ("So11111111111111111111111111111111111111112", "11111111111111111111111111111111", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")


def test_keccak_of_known_messages_is_the_known_digest() -> None:
    """Keccak-256 of the empty message and of one longer than a block, as Ethereum's clients compute them."""
    assert keccak_256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak_256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"
    assert keccak_256(b"a" * 135) != keccak_256(b"a" * 136) != keccak_256(b"a" * 137)


@pytest.mark.parametrize("address", EIP_55)
@pytest.mark.parametrize("network", ["ETH", "BSC", "ARBITRUM"])
def test_evm_address_with_checksum_is_taken(network: str, address: str) -> None:
    """The standard's own examples pass on every network that shares its form."""
    assert address_problem(network, address) is None
    assert checksummed(address.lower().replace("0X", "0x")) == address


@pytest.mark.parametrize("address", EIP_55[4:])
def test_evm_address_without_or_with_wrong_checksum_is_refused(address: str) -> None:
    """All small, all capital, and with one letter's case turned."""
    position = next(place for place, letter in enumerate(address) if place > 1 and letter.isalpha())
    turned = address[:position] + address[position].swapcase() + address[position + 1 :]
    for wrong in (address.lower(), "0x" + address[2:].upper(), turned, address[:-1], address + "0", address[2:], " " + address):
        assert address_problem("ETH", wrong) is not None


@pytest.mark.parametrize("address", BITCOIN)
def test_bitcoin_address_is_taken(address: str) -> None:
    """Both base58 versions, and witness programs of version 0 and later."""
    assert address_problem("BTC", address) is None


@pytest.mark.parametrize("address", BITCOIN_WRONG)
def test_bitcoin_address_that_is_none_is_refused(address: str) -> None:
    """The invalid vectors of BIP 350, other networks, and fragments."""
    assert address_problem("BTC", address) is not None


@pytest.mark.parametrize(("network", "addresses"), [("BTC", BITCOIN[:2]), ("BTC", (BITCOIN[3], BITCOIN[7])), ("TRX", TRON)])
def test_address_with_one_character_changed_is_refused(network: str, addresses: tuple[str, ...]) -> None:
    """The checksum finds each single slip, wherever it is."""
    for address in addresses:
        for position in range(3, len(address)):
            other = "q" if address[position] != "q" else "p"
            assert address_problem(network, address[:position] + other + address[position + 1 :]) is not None


@pytest.mark.parametrize(("network", "addresses"), [("TRX", TRON), ("SOL", SOLANA)])
def test_address_of_network_is_taken_there_alone(network: str, addresses: tuple[str, ...]) -> None:
    """A TRON or Solana address passes on its network and on no other of another form."""
    for address in addresses:
        assert address_problem(network, address) is None
        for other in {"ETH", "BTC", "TRX", "SOL"} - {network}:
            assert address_problem(other, address) is not None


def test_solana_address_of_another_length_or_alphabet_is_refused() -> None:
    """31 and 33 bytes, and letters that base58 leaves out."""
    for wrong in (SOLANA[0][:-1], SOLANA[0] + "2", "0" + SOLANA[0][1:], "O" * 32, "1" * 31, "1" * 33, ""):
        assert address_problem("SOL", wrong) is not None


def test_address_of_unknown_network_is_refused() -> None:
    """Without its rules no address of a network can be told from a slip."""
    assert "known networks" in (address_problem("DOGE", "D7Y55") or "")
    assert all(address_problem(network, "x" * 1_000) is not None for network in NETWORKS)


@pytest.mark.parametrize("tag", ["", "a b", "1&amount=9", "1=2", "ü", "1" * 121, "a\nb", "%31"])
def test_address_tag_that_could_change_a_form_is_refused(tag: str) -> None:
    """A tag stands in the signed form of the request, where `&` begins another field."""
    assert address_problem("TRX", TRON[0], tag) is not None
    assert address_problem("TRX", TRON[0], "101286922") is None
