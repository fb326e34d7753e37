"""What `up` prints when it is ready: addresses, and lines to paste. No password and no secret is in it.

Start with `address_lines`.
"""

import json
import shlex
from pathlib import Path
from typing import Final

from cli.access.installation import RunningInstallation, without_password
from cli.local.trial_users import API_KEY_ID, START_BALANCES, TRIAL_USERS
from cli.terminal.output import Cell, called
from schemas.topics import Topics


def addresses(running: RunningInstallation) -> dict[str, Cell]:
    """The same for programs."""
    return {
        "kafka_bootstrap_servers": running.kafka_bootstrap_servers,
        "database_url": without_password(running.database_url.get_secret_value()),
        "exchange_urls": running.exchange_urls,
        "health": list(running.health),
        "topic_prefix": running.topic_prefix,
        "users": list(TRIAL_USERS) if running.exchange_log is not None else [],
        "pid": running.pid,
    }


def example_request(exchange: str) -> str:
    """A request that a trial user may make, as a word for the shell: each time it is run it has another idempotency key."""
    request = json.dumps({
        "schema_version": 1,
        "type": "trade",
        "idempotency_key": _KEY,
        "user_id": TRIAL_USERS[0],
        "mode": "live",
        "exchange": exchange,
        "api_key_id": API_KEY_ID,
        "symbol": "BTC/USDT",
        "side": "buy",
        "order_type": "market",
        "quantity": "0.01",
    })
    return shlex.quote(request).replace(_KEY, "order-'$(date +%s)'")


# Stands for the key until the shell's own quotes are in place.
_KEY: Final = "@key@"


def address_lines(running: RunningInstallation, directory: Path) -> list[str]:
    """The addresses and what to do with them."""
    simulated = running.exchange_log is not None
    topics = Topics(running.topic_prefix)
    exchanges = ", ".join(f"{exchange} at {url}" for exchange, url in running.exchange_urls.items())
    lines = [
        "",
        f"Kafka      {running.kafka_bootstrap_servers}",
        f"Database   {without_password(running.database_url.get_secret_value())}",
        f"Exchange   {exchanges}{' (simulated: no real money)' if simulated else ''}",
        *(f"Worker {number}   {address}/readyz" for number, address in enumerate(running.health, start=1)),
        f"Logs       {directory / 'workers'}",
    ]
    if simulated:
        amounts = ", ".join(f"{amount} {asset}" for asset, amount in START_BALANCES.items())
        lines.append(f"Users      {', '.join(TRIAL_USERS)}: {amounts} each at the start, api_key_id {API_KEY_ID}")
        lines += _to_paste(running, directory, topics)
    return [*lines, "", "Ctrl-C stops everything."]


def _to_paste(running: RunningInstallation, directory: Path, topics: Topics) -> list[str]:
    request = example_request(running.exchanges[0])
    # Always, as another terminal may stand in another directory.
    command = f"ORCHESTRATOR_DATA_DIR={shlex.quote(str(directory))} {called()}"
    broker = f"-b {running.kafka_bootstrap_servers}"
    user = TRIAL_USERS[0]
    proof, options, headers = [], "", ""
    if running.authentication == "required":
        options, headers = f" --token-file {user}.token --totp CODE", f' -H "authorization=Bearer $(cat {user}.token)" -H x-totp=CODE'
        proof = [
            "",
            "Every request needs a token, and real money a code. Make both for a trial, once; CODE below stands for the code shown now:",
            f"  {command} users enrol-totp {user}",
            f"  {command} tokens issue {user} --hours 8 --signing-key {_signing_key(running)} > {user}.token",
        ]
    return [
        *proof,
        "",
        "Send an order from another terminal and see its answer:",
        f"  echo {request} | {command} submit - --wait{options}",
        "The same with kcat, and all answers:",
        f"  echo {request} | kcat -P {broker} -t {topics.requests} -k {user} -X partitioner=murmur2_random{headers}",
        f"  kcat -C {broker} -t {topics.results} -o beginning -X isolation.level=read_committed",
        *(_session_lines(command, user) if running.authentication == "required" else []),
        "Then look around:",
        *(f"  {command} {words}" for words in ("orders", "results", f"balances --user {user}", "lag", "verify", "doctor")),
    ]


def _session_lines(command: str, user: str) -> list[str]:
    """How one code lets many orders follow without one."""
    session = json.dumps({"schema_version": 1, "type": "session", "idempotency_key": _KEY, "user_id": user})
    session = shlex.quote(session).replace(_KEY, "session-'$(date +%s)'")
    return [
        "Or begin a session with one code, and send orders without one for hours:",
        f"  echo {session} | {command} submit - --wait --token-file {user}.token --totp CODE",
    ]


def _signing_key(running: RunningInstallation) -> str:
    """The private key that the documents put beside the public one, where it is there."""
    beside = None if running.token_keys_file is None else running.token_keys_file.with_name("issuer.pem")
    return "PRIVATE_KEY_FILE" if beside is None or not beside.is_file() else shlex.quote(str(beside))
