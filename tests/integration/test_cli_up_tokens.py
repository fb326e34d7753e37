"""`up` with tokens required: what it prints leads to an order, the guide's bot trades with one code, and a key that is gone is refused."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyotp

from checks.tree import ROOT
from cli.local.trial_issuer import SIGNING_KEY, TRUSTED_KEY
from tests.integration.test_cli_up import _SETTINGS
from tests.orchestrator import Up, start_up, until_ready
from tests.unit.tokens import AUDIENCE, ISSUER, issuer

_GUIDE = (ROOT / "docs/authentication.md").read_text(encoding="utf-8").partition("### A bot with a session")[2]


def _order(key: str, quantity: str = "0.001") -> str:
    document = {
        "schema_version": 1, "type": "trade", "idempotency_key": key, "user_id": "alice", "mode": "live", "exchange": "binance",
        "api_key_id": "main", "symbol": "BTC/USDT", "side": "buy", "order_type": "market", "quantity": quantity,
    }  # fmt: skip
    return json.dumps(document) + "\n"


def _session(key: str) -> str:
    return json.dumps({"schema_version": 1, "type": "session", "idempotency_key": key, "user_id": "alice"}) + "\n"


def _answers(up: Up, lines: str, *more: str) -> list[tuple[str, str | None]]:
    ended = up.run("submit", "-", "--wait", *more, given=lines)
    return [(answer["status"], answer["reason_code"]) for answer in map(json.loads, ended.output.splitlines())]


def test_up_with_tokens_required_trades_with_one_code(tmp_path: Path) -> None:
    """A second factor, a token and a session as printed; then the guide's bot, whose issuer takes the place of the trial's own."""
    data_dir = tmp_path / "data"
    settings = {**_SETTINGS, "TOKEN_ISSUER": ISSUER, "TOKEN_AUDIENCE": AUDIENCE}
    up = start_up(data_dir, tmp_path / "errors", "--authentication", "required", settings=settings)
    try:
        until_ready(up)
        assert (data_dir / SIGNING_KEY).stat().st_mode & 0o077 == 0
        enrolled = up.run("users", "enrol-totp", "alice", "--json", settings=settings)
        assert enrolled.code == 0, enrolled.errors
        app = pyotp.parse_uri(enrolled.json["otpauth_uri"])
        issued = up.run("tokens", "issue", "alice", "--signing-key", str(data_dir / SIGNING_KEY), settings=settings)
        token = tmp_path / "alice.token"
        token.write_text(issued.output)
        token.chmod(0o600)
        with_token = ("--token-file", str(token))
        assert _answers(up, _order("none")) == [("rejected", "AUTH_TOKEN_MISSING")]
        assert _answers(up, _order("early"), *with_token) == [("rejected", "SESSION_UNKNOWN")]
        lines = _session("begin") + _order("one") + _order("two", "0.002")
        used = int(time.time()) // 30
        answers = _answers(up, lines, *with_token, "--totp", str(app.generate_otp(used)))
        assert sorted(answers, key=str) == [("completed", None), ("executed", None), ("executed", None)]
        assert [row["orders_used"] for row in up.run("sessions", "list", "--json").json] == [2]
        _replace_issuer(data_dir)
        assert _answers(up, _order("late"), *with_token) == [("rejected", "AUTH_TOKEN_INVALID")]
        _check_bot(up, app, used, tmp_path)
    finally:
        up.process.terminate()
        up.wait()
    assert "Traceback" not in up.errors


def _replace_issuer(data_dir: Path) -> None:
    new = data_dir / "new.pem"
    new.write_bytes(issuer("RS256", None).public_pem())
    new.replace(data_dir / TRUSTED_KEY)
    # Workers look once a second.
    time.sleep(2)


def _check_bot(up: Up, app: Any, used: int, directory: Path) -> None:
    """Runs the program of the guide; `used` is the step of the last code that was accepted."""
    [program] = re.findall(r"^```python\n(.*?)^```$", _GUIDE, re.MULTILINE | re.DOTALL)
    key = directory / "issuer.pem"
    key.write_bytes(issuer("RS256", None).private_pem())
    # The program asks for the code of its own moment.
    while int(time.time()) // 30 <= used:
        time.sleep(0.2)
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": str(up.addresses["kafka_bootstrap_servers"]),
        "ISSUER_KEY_FILE": str(key),
        "TOTP_SECRET": app.secret,
    }
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("completed None the session confirms trades until")
    assert lines[1:4] == [f"executed None 0.00{number}" for number in (1, 2, 3)]
    assert lines[4] == "completed"
