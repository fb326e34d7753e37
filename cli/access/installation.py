"""Which installation a command talks to: the settings first, else the one that `orchestrator up` runs in the data directory.

Invariants:
1. `endpoints.json` of the data directory is used only where nothing that is set contradicts it. So a command that was pointed at one broker
   never meets another installation's database.
2. One whose process has ended is not used: its ports may be somebody else's by now.
3. The file can hold a database password: it is readable by its owner alone, and its values appear in no message.

Start with `find_installation`.
"""

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, field_serializer
from pydantic_settings import SettingsError

from cli.terminal.exits import CommandFailed, Exit
from infra.settings import Settings

FILE_NAME: Final = "endpoints.json"
# Another one at each start of the machine (random(4)).
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
# What `up` writes and every command may take over, by the names of the settings.
_ADDRESSES: Final = ("kafka_bootstrap_servers", "database_url")
_TAKEN_OVER: Final = (
    *_ADDRESSES, "exchange_urls", "topic_prefix", "consumer_group", "exchanges", "master_key_file", "authentication", "token_keys_file",
    "token_issuer", "token_audience",
)  # fmt: skip


class RunningInstallation(BaseModel):
    """What `up` leaves in the data directory while it runs. `started` tells its process from a later one with the same number."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    pid: int
    started: str
    kafka_bootstrap_servers: str
    database_url: SecretStr
    exchanges: tuple[str, ...]
    exchange_urls: dict[str, str]
    topic_prefix: str
    consumer_group: str
    master_key_file: Path | None
    exchange_log: Path | None
    health: tuple[str, ...]
    authentication: Literal["required", "sandbox"] = "required"
    token_keys_file: Path | None = None
    token_issuer: str | None = None
    token_audience: str | None = None

    @field_serializer("database_url", when_used="json")
    def _written_out(self, value: SecretStr) -> str:
        return value.get_secret_value()

    @property
    def is_running(self) -> bool:
        return process_started(self.pid) == self.started


@dataclass(frozen=True)
class Installation:
    """The settings with the addresses filled in. `running` is what they were taken from, None where the settings name everything."""

    settings: Settings
    running: RunningInstallation | None = field(default=None, repr=False)

    @property
    def kafka(self) -> str:
        """The broker's addresses. Raises CommandFailed where nobody named them."""
        if self.settings.kafka_bootstrap_servers is None:
            raise self._unnamed("ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS", "broker")
        return self.settings.kafka_bootstrap_servers

    @property
    def database_url(self) -> str:
        """The database's URL. Raises CommandFailed where nobody named it."""
        if self.settings.database_url is None:
            raise self._unnamed("ORCHESTRATOR_DATABASE_URL", "database")
        return self.settings.database_url.get_secret_value()

    def _unnamed(self, variable: str, service: str) -> CommandFailed:
        directory = data_directory(self.settings)
        left = read_running(directory)
        if left is None:
            found = f"no installation runs in {directory}"
        elif left.is_running:
            found = f"the installation that runs in {directory} does not fit the settings that are set"
        else:
            found = f"the one in {directory} (process {left.pid}) has ended without cleaning up"
        return CommandFailed(
            f"No {service} is known: {variable} is not set, and {found}. Nothing was read, sent or changed. "
            "Start one with `orchestrator up`, or set the address.",
            Exit.OUT_OF_REACH,
        )

    def out_of_reach(self, service: str, address: str, reason: str) -> CommandFailed:
        """The error for a service that does not answer. `address` must not hold a password."""
        return CommandFailed(
            f"The {service} at {address} is out of reach ({reason}). Nothing more was read or changed; requests that are in Kafka stay "
            "there, and funds that are held stay held. Start it, or check its address; `orchestrator doctor` checks all of them.",
            Exit.OUT_OF_REACH,
        )


def process_started(pid: int) -> str | None:
    """When a process started, as text that identifies it together with its number; None where there is no such process.

    On Linux counted from the machine's own start: the time of day at which a process started is another one after the clock was set (by
    NTP, or because a virtual machine goes on), and a running installation would look like one that has ended.
    """
    try:
        if sys.platform == "linux":
            # Source: proc_pid_stat(5). Field 22, in clock ticks; the command's name stands in parentheses and may hold anything.
            ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
            return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {ticks}"
        return f"{psutil.Process(pid).create_time():.2f}"
    except (OSError, psutil.Error):
        return None


def data_directory(settings: Settings) -> Path:
    """The data directory from the root, `~` resolved."""
    return settings.data_dir.expanduser().absolute()


class WrongSettings(Exception):
    """The settings cannot work. `problems` has one line for each wrong one; values are left out, as they may be secrets."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def made_settings() -> Settings:
    """The settings. Raises WrongSettings."""
    file = os.environ.get("ORCHESTRATOR_CONFIG")
    if file and not Path(file).is_file():
        # It would be left out in silence, and everything in it with it.
        raise WrongSettings([f"ORCHESTRATOR_CONFIG: there is no file {file}"])
    try:
        return Settings()
    except ValidationError as error:
        raise WrongSettings(_problems_of(error)) from None
    except SettingsError as error:
        # Its text names the field and the source, no value.
        names = [name for name in Settings.model_fields if f'"{name}"' in str(error)]
        raise WrongSettings([f"{variable_of(name)} is not JSON, as lists and maps must be" for name in names] or [str(error)]) from None
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise WrongSettings([f"ORCHESTRATOR_CONFIG: {file} cannot be read ({type(error).__name__})"]) from None


def _problems_of(error: ValidationError) -> list[str]:
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name, *inside = (str(part) for part in problem["loc"]) if problem["loc"] else ("config",)
        place = f" ({'.'.join(inside)})" if inside else ""
        problems.append(f"{variable_of(name)}{place}: {problem['msg']}")
    return problems


def variable_of(setting: str) -> str:
    """The environment variable of a setting."""
    return f"ORCHESTRATOR_{setting.upper()}"


def read_settings() -> Settings:
    """The settings. Raises CommandFailed naming each variable that is wrong."""
    try:
        return made_settings()
    except WrongSettings as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise CommandFailed(
            f"The settings are wrong, so nothing was started, sent or changed:\n{problems}\nMend the variable (or the file that "
            "ORCHESTRATOR_CONFIG names) and try again.",
            Exit.USAGE,
        ) from None


def read_running(directory: Path) -> RunningInstallation | None:
    """What `up` wrote into the directory; None where there is nothing that can be read."""
    try:
        return RunningInstallation.model_validate_json((directory / FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def find_installation() -> Installation:
    """The installation that this command is about. Raises CommandFailed for wrong settings."""
    settings = read_settings()
    running = read_running(data_directory(settings))
    if running is None or not running.is_running or not _fits(settings, running):
        return Installation(settings)
    taken: dict[str, Any] = {name: getattr(running, name) for name in _TAKEN_OVER if name not in settings.model_fields_set}
    if settings.master_key is not None:
        taken.pop("master_key_file", None)
    if not taken:
        return Installation(settings)
    return Installation(settings.model_copy(update=taken), running)


def _fits(settings: Settings, running: RunningInstallation) -> bool:
    """Whether everything that is set agrees with what `up` wrote."""
    return all(
        getattr(settings, name) == getattr(running, name) for name in _TAKEN_OVER if name in settings.model_fields_set
    )


def forget_ended(directory: Path) -> None:
    """Takes away `endpoints.json` of an `up` that was killed: it names services that have stopped with it."""
    left = read_running(directory)
    if left is not None and not left.is_running:
        (directory / FILE_NAME).unlink(missing_ok=True)


@contextmanager
def announced(directory: Path, running: RunningInstallation) -> Iterator[None]:
    """Keeps `endpoints.json` in the directory while the block runs; the file is whole or absent, and for its owner alone."""
    path = directory / FILE_NAME
    temporary = directory / f".{FILE_NAME}.{os.getpid()}"
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(running.model_dump_json(indent=2))
    temporary.replace(path)
    try:
        yield
    finally:
        written = read_running(directory)
        if written is not None and (written.pid, written.started) == (running.pid, running.started):
            path.unlink(missing_ok=True)


def without_password(url: str) -> str:
    """A URL that can be shown: user name, hosts, database and socket, without the password, wherever it stands."""
    scheme, found, rest = url.partition("://")
    # A password with one of these in it ends the address for whoever reads it by the rules: nothing before the last @ is shown then.
    credentials, _, rest = rest.rpartition("@")
    if found and re.search(r"[/?#\[\]]", credentials):
        return f"{scheme}://…@{rest.partition('/')[0]} (its password has characters that must be percent-encoded)"
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    shown = f"{user.partition(':')[0]}{at}{host}"
    query = "&".join(pair for pair in parts.query.split("&") if pair and not pair.lower().startswith(("password=", "sslpassword=")))
    return f"{parts.scheme}://{shown}{parts.path}{'?' if query else ''}{query}"
