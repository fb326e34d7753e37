"""The keyring: several master keys, what each ciphertext is bound to, and what a wrong master key says."""

import base64
from pathlib import Path

import pytest

from infra.keyring import Keyring, MasterKeyError, StoredSecret, keyring_of, master_keys, new_master_key
from infra.settings import Settings

SECRET = StoredSecret("the-api-key", "the-secret")


def _keyring(*entries: tuple[str, str]) -> Keyring:
    return Keyring(master_keys("\n".join(f"{key_id}:{key}" for key_id, key in entries)))


def test_keyring_of_a_bare_master_key_names_it_1() -> None:
    """One bare base64 value is what every installation has had: its id in the rows is 1."""
    key = new_master_key()
    assert Keyring(master_keys(key)).key_id == "1"
    assert Keyring(master_keys(f"1:{key}")).decrypt("alice", "k", Keyring(master_keys(key)).encrypt("alice", "k", SECRET)) == SECRET


@pytest.mark.parametrize("separator", ["\n", "\r\n", ",", " ", "\n\n  "])
def test_keyring_reads_several_keys_newest_first(separator: str) -> None:
    """The first key encrypts, whatever stands between the values: an environment file has no line breaks."""
    old, new = new_master_key(), new_master_key()
    keyring = Keyring(master_keys(f"2:{new}{separator}1:{old}\n"))
    assert (keyring.key_id, keyring.key_ids) == ("2", ("2", "1"))
    ciphertext = keyring.encrypt("alice", "k", SECRET)
    assert _keyring(("2", new)).decrypt("alice", "k", ciphertext) == SECRET
    with pytest.raises(MasterKeyError):
        _keyring(("1", old)).decrypt("alice", "k", ciphertext)


def test_keyring_decrypts_what_an_older_key_encrypted() -> None:
    """With the new key in front, what was stored before still opens: by its id, and without one."""
    old, new = new_master_key(), new_master_key()
    before = _keyring(("1", old))
    key, factor = before.encrypt("alice", "k", SECRET), before.encrypt_second_factor("alice", "TOTPSECRET")
    after = _keyring(("2", new), ("1", old))
    for named in ("1", None):
        assert after.decrypt("alice", "k", key, named) == SECRET
        assert after.decrypt_second_factor("alice", named, factor) == "TOTPSECRET"


def test_keyring_goes_by_the_key_id_of_the_row() -> None:
    """A row that names a key that is not there is told by its name, and no other key is tried in its place."""
    old, new = new_master_key(), new_master_key()
    ciphertext = _keyring(("1", old)).encrypt("alice", "k", SECRET)
    keyring = _keyring(("2", new), ("1", old))
    with pytest.raises(MasterKeyError, match="names master key 0, here are only 2, 1"):
        keyring.decrypt("alice", "k", ciphertext, "0")
    with pytest.raises(MasterKeyError):
        keyring.decrypt("alice", "k", ciphertext, "2")


@pytest.mark.parametrize(("user_id", "api_key_id"), [("bob", "k"), ("alice", "other")])
def test_keyring_ciphertext_of_another_row_does_not_decrypt(user_id: str, api_key_id: str) -> None:
    """Whoever can write to the database cannot give one user's key to another, nor swap two keys of a user."""
    keyring = _keyring(("1", new_master_key()))
    with pytest.raises(MasterKeyError):
        keyring.decrypt(user_id, api_key_id, keyring.encrypt("alice", "k", SECRET))


def test_keyring_second_factor_is_bound_to_its_user_and_its_kind() -> None:
    """A second factor opens for its user alone; an API key's ciphertext in its place does not open at all, nor the other way round."""
    keyring = _keyring(("1", new_master_key()))
    factor = keyring.encrypt_second_factor("alice", "TOTPSECRET")
    assert keyring.decrypt_second_factor("alice", "1", factor) == "TOTPSECRET"
    with pytest.raises(MasterKeyError):
        keyring.decrypt_second_factor("bob", "1", factor)
    with pytest.raises(MasterKeyError):
        keyring.decrypt_second_factor("alice", "1", keyring.encrypt("alice", "second factor", SECRET))
    with pytest.raises(MasterKeyError):
        keyring.decrypt("alice", "second factor", factor)


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:8], lambda c: c[:-1], lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_keyring_damaged_ciphertext_is_refused(damage: object) -> None:
    """A ciphertext that is cut or changed by one bit is refused as a wrong master key, not by a crash."""
    keyring = _keyring(("1", new_master_key()))
    ciphertext = keyring.encrypt("alice", "k", SECRET)
    assert callable(damage)
    with pytest.raises(MasterKeyError):
        keyring.decrypt("alice", "k", damage(ciphertext))


def test_keyring_encrypts_the_same_secret_differently_each_time() -> None:
    """A nonce is used once: two ciphertexts of one secret have nothing in common."""
    keyring = _keyring(("1", new_master_key()))
    first, second = (keyring.encrypt("alice", "k", SECRET) for _ in range(2))
    assert first[:12] != second[:12]
    assert first != second


_SHORT = base64.b64encode(b"short").decode()
_GOOD = base64.b64encode(b"\x07" * 32).decode()
_OTHER = base64.b64encode(b"\x08" * 32).decode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("not!base64", "the master key is not base64"),
        (_SHORT, "has 5 bytes, it must have 32"),
        (f"1:{_SHORT}", "has 5 bytes, it must have 32"),
        (f"{_GOOD}\n{_OTHER}", "master key 1 of 2 has no id"),
        (f"2:{_GOOD}\n{_OTHER}", "master key 2 of 2 has no id"),
        (f"1:{_GOOD}\n1:{_OTHER}", "two master keys have the id 1"),
        (f"2:{_GOOD}\n1:{_GOOD}", "has the same bytes as another one"),
        (f":{_GOOD}", "the id of the master key must be"),
        (f"a:b:{_GOOD}", "the id of the master key must be"),
        (f"{'x' * 33}:{_GOOD}", "the id of the master key must be"),
        ("\n".join(f"{n}:{base64.b64encode(bytes([n]) * 32).decode()}" for n in range(1, 34)), "at most 32 are read"),
    ],
)
def test_master_key_that_is_malformed_is_told_without_its_bytes(text: str, says: str) -> None:
    """Every way to write it wrong has a sentence of its own, and none repeats what was written."""
    with pytest.raises(MasterKeyError, match=says) as caught:
        master_keys(text)
    for secret in (_SHORT, _GOOD, _OTHER, "not!base64"):
        assert secret not in str(caught.value)


def test_master_key_file_with_several_lines_is_read(tmp_path: Path) -> None:
    """The file may hold all keys, with an end of line as editors leave it."""
    file = tmp_path / "master"
    file.write_text(f"new:{_GOOD}\nold:{_OTHER}\n")
    assert keyring_of(Settings(master_key_file=file)).key_ids == ("new", "old")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00not text"], ids=["absent", "no text"])
def test_master_key_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    """A file that is absent, or holds raw bytes in place of base64, is a sentence and no traceback."""
    file = tmp_path / "master"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MasterKeyError, match="the master key file") as caught:
        keyring_of(Settings(master_key_file=file))
    assert content is None or repr(content) not in str(caught.value)


def test_stored_secret_and_keyring_show_nothing_in_their_repr() -> None:
    """Neither an error nor a log line that shows an object shows what is in it."""
    shown = f"{SECRET!r} {SECRET} {_keyring(('1', _GOOD))!r}"
    assert "the-secret" not in shown
    assert "the-api-key" not in shown
    assert _GOOD not in shown
