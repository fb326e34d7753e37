"""The issuer that `up` makes for a trial: once, readable by its owner alone, and never in place of one that is configured."""

from pathlib import Path

import jwt
import pytest

from cli.admin.tokens import read_signing_key
from cli.local.trial_issuer import SIGNING_KEY, TRUSTED_KEY, with_trial_issuer
from cli.terminal.exits import CommandFailed
from infra.settings import Settings
from infra.trusted_keys import TrustedKeyFile


def test_trial_issuer_signs_what_workers_trust_also_after_a_restart(tmp_path: Path) -> None:
    """The pair fits, is the same at the next start, and its private half is for its owner alone."""
    settings = with_trial_issuer(Settings(), tmp_path)
    assert settings.token_keys_file == tmp_path / TRUSTED_KEY
    assert (tmp_path / SIGNING_KEY).stat().st_mode & 0o777 == 0o600
    key, algorithm = read_signing_key(tmp_path / SIGNING_KEY)
    [trusted] = TrustedKeyFile(tmp_path / TRUSTED_KEY).current().keys
    signed, _, signature = jwt.encode({"sub": "alice"}, key, algorithm).encode().rpartition(b".")
    assert trusted.key.Algorithm.verify(signed, trusted.key.key, jwt.utils.base64url_decode(signature))
    before = (tmp_path / SIGNING_KEY).read_bytes()
    with_trial_issuer(Settings(), tmp_path)
    assert (tmp_path / SIGNING_KEY).read_bytes() == before


def test_configured_keys_are_left_alone(tmp_path: Path) -> None:
    """Whoever names keys gets those, and no key is made."""
    settings = Settings(token_keys_file=tmp_path / "mine.pem")
    assert with_trial_issuer(settings, tmp_path) == settings
    assert list(tmp_path.iterdir()) == []


def test_key_that_is_none_is_refused_without_showing_it(tmp_path: Path) -> None:
    """Another file in its place is told, and not overwritten."""
    (tmp_path / SIGNING_KEY).write_text("a private thing")
    with pytest.raises(CommandFailed, match="is not the key") as failed:
        with_trial_issuer(Settings(), tmp_path)
    assert "private thing" not in str(failed.value)
    assert (tmp_path / SIGNING_KEY).read_text() == "a private thing"
