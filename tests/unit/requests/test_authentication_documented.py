"""The programs in docs/authentication.md make headers that are accepted: run as they stand there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from checks.tree import ROOT
from infra.trusted_keys import TrustedKeyFile, TrustedKeysError
from pipeline.model.second_factor import SecondFactor, check_code
from pipeline.requests.authentication import Scope, Token, TokenRules, TokenVerifier, scope_refusal, user_refusal

TEXT = (ROOT / "docs/authentication.md").read_text(encoding="utf-8")
SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # not a secret: that of RFC 6238, appendix B
README = (ROOT / "README.md").read_text(encoding="utf-8")


def of_readme(name: str) -> str:
    """What README sets a variable to; the same everywhere in it."""
    (value,) = set(re.findall(rf"ORCHESTRATOR_{name}=(\S+)", README))
    return str(value)


# The guide's tokens must hold where README's settings are used.
RULES = TokenRules(of_readme("TOKEN_ISSUER"), of_readme("TOKEN_AUDIENCE"), timedelta(seconds=30))


def program(language: str, number: int = 0) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found[number])


def run(command: list[str], directory: Path) -> str:
    environment = {**os.environ, "TOTP_SECRET": SECRET}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with the issuer's key pair, made by the documented commands."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    run(["sh", "-ec", program("sh")], tmp_path)
    return tmp_path


def accepted(directory: Path, authorization: str) -> bool:
    verifier = TokenVerifier(TrustedKeyFile(directory / "token-keys.pem").current, RULES)
    token = verifier.verify(authorization.encode(), datetime.fromtimestamp(time.time(), UTC))
    assert isinstance(token, Token), token
    return user_refusal(token, "alice") is None and scope_refusal(token, Scope.TRADE) is None


def test_documented_python_program_makes_headers_that_are_accepted(keys: Path) -> None:
    """Token and code of the program in Python hold for the key pair of the commands above it."""
    headers = json.loads(run([sys.executable, "-c", f"{program('python')}\nimport json\nprint(json.dumps(headers))"], keys))
    assert accepted(keys, headers["authorization"])
    refusal, _ = check_code(SecondFactor(SECRET), headers["x-totp"].encode(), datetime.fromtimestamp(time.time(), UTC))
    assert refusal is None


def test_documented_shell_program_makes_a_token_that_is_accepted(keys: Path) -> None:
    """So does the token made with openssl alone."""
    token = run(["sh", "-ec", f'{program("bash")}\nprintf %s "$token"'], keys)
    assert accepted(keys, f"Bearer {token}")


def test_documented_private_key_cannot_be_deployed(keys: Path) -> None:
    """Whoever mistakes one of the two files for the other is told so at the start."""
    with pytest.raises(TrustedKeysError, match="private key"):
        TrustedKeyFile(keys / "issuer.pem")
