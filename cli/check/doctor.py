"""`doctor`: every dependency and setting, one line each: well, or what is wrong and what to do.

Invariants:
1. It changes nothing: no topic, table or order.
2. Every check has a time limit, and one that fails keeps none of the others from running.
3. No line holds a secret.

Start with `examine`; the checks of services are in `service_checks`.
"""

import asyncio
import difflib
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from agents.process.permitted import ExchangeNotPermitted, require_permitted
from cli.access.installation import Installation, WrongSettings, data_directory, find_installation, made_settings, variable_of
from cli.check.durability_checks import check_waiting_times
from cli.check.service_checks import check_broker, check_database, check_exchange, check_offsets
from cli.terminal.exits import Exit
from cli.terminal.findings import Finding, Findings
from cli.terminal.output import as_called, print_table, printable, say, wrapped, write_line
from embedded.data_dir import FREE_BYTES_MIN
from infra.keyring import MasterKeyError, keyring_of
from infra.settings import Settings
from infra.trusted_keys import TrustedKeysError

_PREFIX: Final = "ORCHESTRATOR_"
# Names a file, so it cannot be a setting in it.
_NOT_SETTINGS: Final = frozenset({"ORCHESTRATOR_CONFIG", "ORCHESTRATOR_OPERATOR_TOKEN_FILE"})
# A fresh installation starts with this; a day of heavy trading needs more (docs: operations).
_PYTHON: Final = (3, 11)
_CHECK_SECONDS_MAX: Final = 10.0


def check_python() -> Findings:
    found = platform.python_version()
    if sys.version_info[:2] == _PYTHON:
        return [Finding.ok("Python", f"version {found}")]
    return [Finding.problem("Python", f"version {found}", "use Python 3.11: the libraries are locked and tested for it alone")]


def check_variables() -> Findings:
    """Variables with our prefix that no setting reads: a misspelt one would be left out in silence."""
    known = {variable_of(name) for name in Settings.model_fields}
    given = {name for name in os.environ if name.startswith(_PREFIX)} - _NOT_SETTINGS
    return [_unknown(name, known) for name in sorted(given - known)]


def check_file() -> Findings:
    """The same for the names in the settings file, which has been read without an error."""
    file = os.environ.get("ORCHESTRATOR_CONFIG")
    names = tomllib.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return [_unknown(name, Settings.model_fields) for name in sorted(names.keys() - Settings.model_fields.keys())]


def _unknown(name: str, known: Iterable[str]) -> Finding:
    near = difflib.get_close_matches(name, list(known), n=1)
    remedy = f"did you mean {near[0]}?" if near else "take it out, or look its name up in docs/operations.md"
    return Finding.problem("settings", f"{name} is not a setting: it has no effect", remedy)


def check_settings(settings: Settings) -> Findings:
    """What each setting alone cannot show."""
    findings = []
    if settings.kafka_min_insync_replicas > settings.kafka_replication_factor:
        findings.append(
            Finding.problem(
                "settings",
                f"ORCHESTRATOR_KAFKA_MIN_INSYNC_REPLICAS is {settings.kafka_min_insync_replicas}, more than the "
                f"{settings.kafka_replication_factor} copies of ORCHESTRATOR_KAFKA_REPLICATION_FACTOR: nothing could be written",
                "make it one less than the number of copies",
            )
        )
    elif settings.kafka_replication_factor > 1 and settings.kafka_min_insync_replicas == 1:
        findings.append(
            Finding.problem(
                "settings",
                "ORCHESTRATOR_KAFKA_MIN_INSYNC_REPLICAS is 1: an acknowledged request can be lost with one broker",
                "set it to 2 or more",
            )
        )
    if settings.trade_usd_min > settings.trade_usd_max:
        findings.append(
            Finding.problem("settings", "ORCHESTRATOR_TRADE_USD_MIN is above ORCHESTRATOR_TRADE_USD_MAX: no trade fits", "swap them")
        )
    return findings or [Finding.ok("settings", "valid")]


def check_data_directory(settings: Settings) -> Findings:
    directory = data_directory(settings)
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        remedy = "make it writable for this user, or choose another with ORCHESTRATOR_DATA_DIR"
        return [Finding.problem("data directory", f"{directory} cannot be written", remedy)]
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < FREE_BYTES_MIN:
        return [
            Finding.problem(
                "data directory",
                f"{free_bytes // 2**20} MiB are free at {directory}, {FREE_BYTES_MIN // 2**20} MiB are needed",
                "free some space, or choose another with ORCHESTRATOR_DATA_DIR",
            )
        ]
    return [Finding.ok("data directory", f"{directory}, {free_bytes // 2**20} MiB free")]


def check_master_key(settings: Settings) -> Findings:
    try:
        keyring_of(settings)
    except MasterKeyError as error:
        remedy = "workers refuse to start without it; `orchestrator up` makes one for a trial"
        return [Finding.problem("master key", str(error), remedy)]
    file = settings.master_key_file
    if settings.master_key is None and file is not None and (mode := file.stat().st_mode & 0o077):
        return [Finding.problem("master key", f"{file} can be read by others (mode {mode:o} for them)", f"chmod 600 {file}")]
    return [Finding.ok("master key", "present")]


def check_authentication(settings: Settings) -> Findings:
    if settings.authentication == "sandbox":
        return [Finding.ok("authentication", "sandbox: nobody is asked for a token, and no real exchange is traded at")]
    try:
        require_permitted(settings)
    except TrustedKeysError as error:
        return [Finding.problem("authentication", str(error), "workers refuse to start without it")]
    except ExchangeNotPermitted as error:
        return [Finding.problem("settings", str(error), "workers refuse to start until it is fixed")]
    taken = "from any issuer" if settings.token_issuer is None else f"from {printable(settings.token_issuer)}"
    meant = "for no audience" if settings.token_audience is None else f"for {printable(settings.token_audience)}"
    detail = f"tokens and second factors are required; tokens {taken}, {meant}, signed by a key of {settings.token_keys_file}"
    return [Finding.ok("authentication", detail)]


async def _within_limit(check: Callable[[Installation], Awaitable[Findings]], installation: Installation, name: str) -> Findings:
    try:
        async with asyncio.timeout(_CHECK_SECONDS_MAX):
            return await check(installation)
    except TimeoutError:
        return [Finding.unreachable(name, f"no answer within {_CHECK_SECONDS_MAX:.0f} s", "check its address and the network")]


async def examine() -> Findings:
    """Every finding, in the order in which a person would fix them."""
    findings = [*check_python(), *check_variables()]
    try:
        made_settings()
    except WrongSettings as error:
        wrong = [Finding.problem("settings", problem, "fix it; the services were not checked") for problem in error.problems]
        return [*findings, *wrong]
    installation = find_installation()
    settings = installation.settings
    findings += [*check_file(), *check_settings(settings), *check_waiting_times(settings), *check_data_directory(settings)]
    findings += [*check_master_key(settings), *check_authentication(settings)]
    of_services = await asyncio.gather(
        _within_limit(check_broker, installation, "broker"),
        _within_limit(check_database, installation, "database"),
        _within_limit(check_offsets, installation, "offsets"),
        *(
            _within_limit(lambda known, exchange=exchange: check_exchange(known, exchange), installation, f"exchange {exchange}")  # type: ignore[misc]  # mypy cannot type a lambda's default
            for exchange in settings.exchanges
        ),
    )
    return [*findings, *(finding for found in of_services for finding in found)]


async def run_doctor(*, as_json: bool) -> Exit:
    """Prints every finding; returns DONE, NOT_SO with problems, OUT_OF_REACH when a service does not answer."""
    findings = await examine()
    if as_json:
        print_table([finding.row() for finding in findings], (), as_json=True, nothing="")
    else:
        for finding in findings:
            write_line("\n".join(wrapped(as_called(finding.line()), len("problem  "))))
    wrong = [finding for finding in findings if finding.status != "ok"]
    if wrong:
        say(f"{len(wrong)} of {len(findings)} checks need attention. Funds and orders were not touched.")
    if any(finding.out_of_reach for finding in findings):
        return Exit.OUT_OF_REACH
    return Exit.NOT_SO if wrong else Exit.DONE


