"""What `submit` sends in the headers of each line."""

import json
from pathlib import Path

import pyotp
import pytest

from cli.show.proof import Proof
from cli.terminal.exits import CommandFailed
from cli.terminal.lines import Line

_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"


def _line(number: int, **fields: object) -> Line:
    return Line(number, json.dumps({"type": "trade", "mode": "live", **fields}).encode())


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("Bearer a.b.c\n")
    return file


async def test_token_goes_with_every_line_and_a_given_code_with_the_first_that_moves_real_money(token_file: Path) -> None:
    """A code is accepted once: on a second line it would only be refused as replayed."""
    proof = Proof(token_file, " 123456 ", None)
    bearer = ("authorization", b"Bearer a.b.c")
    assert await proof.headers(_line(1, mode="paper")) == [bearer]
    assert await proof.headers(_line(2, type="cancel")) == [bearer]
    assert await proof.headers(_line(3)) == [bearer, ("x-totp", b"123456")]
    assert await proof.headers(_line(4)) == [bearer]


async def test_line_without_token_and_code_has_no_headers() -> None:
    """As in a sandbox."""
    assert await Proof(None, None, None).headers(_line(1)) == []


@pytest.mark.parametrize("form", ["{secret}", "otpauth://totp/a?secret={secret}&issuer=b", "jbsw y3dp ehpk 3pxp jbsw y3dp ehpk 3pxp"])
async def test_codes_made_from_a_secret_are_each_of_another_step(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second line waits until the next step has begun, and says so; neither code nor secret is said."""
    file = tmp_path / "secret"
    file.write_text(form.format(secret=_SECRET))
    file.chmod(0o600)
    now = [1_000_000_010.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("cli.show.proof.asyncio.sleep", sleep)
    proof = Proof(None, None, file, clock=lambda: now[0])
    codes = [dict(await proof.headers(_line(number)))["x-totp"].decode() for number in (1, 2, 3)]
    assert codes == [pyotp.TOTP(_SECRET).at(1_000_000_010 + 30 * number) for number in range(3)]
    said = capsys.readouterr().err
    assert "line 2 waits" in said
    assert not any(secret in said for secret in (*codes, _SECRET))


@pytest.mark.parametrize("content", ["", "not base32!", "otpauth://totp/x", "otpauth://hotp/x?secret=1"])
def test_file_without_a_secret_is_wrong_usage_and_is_not_repeated(content: str, tmp_path: Path) -> None:
    """Whatever it is, it may be a secret."""
    file = tmp_path / "secret"
    file.write_text(content)
    with pytest.raises(CommandFailed) as error:
        Proof(None, None, file)
    assert error.value.code == 2
    assert not content or content not in str(error.value)


def test_code_and_secret_together_are_wrong_usage(tmp_path: Path) -> None:
    """Which of the two would be sent?"""
    with pytest.raises(CommandFailed, match="--totp-secret-file"):
        Proof(None, "123456", tmp_path / "any")
