"""What operators change is in force for the next request that a running worker decides: the whole way, with tokens and second factors."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pyotp
from aiokafka import AIOKafkaProducer

from tests.installation import Installation, installation, order
from tests.orchestrator import Ended, orchestrator

_REASON = ("--reason", "a test", "--operator", "ana")


class Trial:
    """One user with a token and a second factor, at an installation with one worker."""

    def __init__(self, made: Installation, directory: Path, secret_file: Path) -> None:
        self.made = made
        self.directory = directory
        environment = made.environment({"ORCHESTRATOR_TOKEN_KEYS_FILE": str(secret_file)})
        prefix = "ORCHESTRATOR_"
        self.settings = {name.removeprefix(prefix): value for name, value in environment.items() if name.startswith(prefix)}
        self.secret_file = secret_file
        self.token = self.totp_secret = ""
        self._last_step = -1
        self._number = 0

    async def command(self, *arguments: str, given: str = "") -> Ended:
        ended = await asyncio.to_thread(orchestrator, self.directory, *arguments, given=given, settings=self.settings)
        assert ended.code == 0, ended.errors
        return ended

    async def prepare(self) -> None:
        """Enrols the user and signs a token."""
        uri = (await self.command("users", "enrol-totp", "alice", "--json")).json["otpauth_uri"]
        found = re.search(r"secret=([A-Z2-7]+)", uri)
        assert found is not None
        self.totp_secret = found[1]
        self.token = (await self.command("tokens", "issue", "alice", "--signing-key", str(self.secret_file))).output.strip()

    def _code(self) -> str:
        """The code of a step that no request has used: this one's, or the next one's, which is good already."""
        now = int(time.time()) // 30
        self._last_step = max(self._last_step + 1, now)
        assert self._last_step <= now + 1
        return pyotp.TOTP(self.totp_secret).at(self._last_step * 30)

    async def answer(self, *, code: bool = True) -> dict[str, Any]:
        """The final answer to a new order."""
        self._number += 1
        headers = [("authorization", f"Bearer {self.token}".encode())]
        if code:
            headers.append(("x-totp", self._code().encode()))
        producer = AIOKafkaProducer(bootstrap_servers=self.made.settings.kafka_bootstrap_servers)
        await producer.start()
        try:
            value = json.dumps(order(self._number, user_id="alice", idempotency_key=f"k{self._number}")).encode()
            sent = await producer.send_and_wait(self.made.topics.requests, value, key=b"alice", headers=headers)
        finally:
            await producer.stop()
        return (await self.made.final_results([sent], 120))[sent.partition, sent.offset]


async def test_what_operators_change_holds_for_the_next_request(kafka: str, database_url: str, unique_prefix: str, tmp_path: Path) -> None:
    """An enrolled user with an issued token trades; a lower limit, a freeze and a revoked key each refuse the very next order."""
    secret_file = tmp_path / "token-secret"
    secret_file.write_text("a-trial-secret-of-more-than-32-bytes\n")
    secret_file.chmod(0o600)
    async with installation(
        kafka, database_url, unique_prefix, tmp_path, users=("alice",), authentication="required", token_keys_file=secret_file
    ) as made:
        trial = Trial(made, tmp_path, secret_file)
        made.start_worker(ORCHESTRATOR_TOKEN_KEYS_FILE=str(secret_file))
        await trial.prepare()
        answers = [await trial.answer()]
        for change, undo in (
            (("limits", "set", "alice", "trade_usd_max", "1", *_REASON), ("limits", "clear", "alice", "trade_usd_max")),
            (("users", "freeze", "alice", *_REASON), ("users", "unfreeze", "alice", *_REASON)),
        ):
            await trial.command(*change)
            # It is refused before any code is asked for.
            answers.append(await trial.answer(code=False))
            await trial.command(*undo)
        answers.append(await trial.answer(code=False))
        await trial.command("keys", "revoke", "alice", "main", "--yes", *_REASON)
        answers.append(await trial.answer())
        assert [(answer["status"], answer["reason_code"]) for answer in answers] == [
            ("executed", None),
            ("rejected", "AMOUNT_ABOVE_MAXIMUM"),
            ("rejected", "USER_INACTIVE"),
            # Its token names a session, which no code has begun.
            ("rejected", "SESSION_UNKNOWN"),
            ("rejected", "API_KEY_REVOKED"),
        ]
        assert len(made.accepted_orders()) == 1
        await trial.command("verify", "--exchange-log", str(made.exchange_log))
