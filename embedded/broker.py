"""The embedded Apache Kafka: one node that is broker and controller, on two free ports of 127.0.0.1.

1. The broker's port is the same at every start, given or remembered in the data directory; the controller's is chosen each time and is
   nobody's business but ours. The quorum has one voter that is named by its id in the configuration, so a new port is not a new quorum.
2. Storage is formatted once, aside, and renamed: it is complete or absent.
3. An acknowledged record survives the death of every process. It is in the page cache first, as on any Kafka: a single node whose
   machine loses power can lose the last moments. Use a real cluster (`external`) for real money.
"""

import asyncio
import shutil
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Self

from embedded import java
from embedded.data_dir import DataDirectory, disk_full, is_disk_full, says_disk_full
from embedded.errors import ChooseOtherDirectoryError, FixHostError, ReadLogError, RetryLaterError
from embedded.guarded import Command, GuardedServer, log_tail, run_to_end
from embedded.jars import BROKER_JARS, KAFKA_VERSION, jars_directory
from embedded.ports import RememberedPorts, free_port, is_free
from embedded.probes import broker_answers

_FORMAT_SECONDS_MAX = 60.0
_START_SECONDS_MAX = 90.0
_STOP_SECONDS_MAX = 20.0
# The runtime writes its start-up cache after the broker has stopped: six seconds on an idle machine.
_RECORDING_STOP_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.05
# A port that was free a moment ago can be taken when the broker asks for it.
_PORT_ATTEMPTS_MAX = 4
# In the broker's storage: the version that formatted it. An older one cannot read it and would only say so among hundreds of lines.
_FORMATTED_BY = "formatted_by"

_LOGGING_CONFIGURATION = """\
status = error
rootLogger.level = warn
rootLogger.appenderRef.console.ref = CONSOLE
appender.console.type = Console
appender.console.name = CONSOLE
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS'Z'}{UTC} %p %m (%c{1})%n
"""

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # One node can keep one copy.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The defaults of 50 make the first consumer and the first transaction wait for 50 partitions each.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # After a kill the controller lets the broker in again only when the old session has run out (9 s by default). Not shorter: a machine
    # that stands still for that long makes every partition lose its leader for a moment.
    "broker.session.timeout.ms": "6000",
    "broker.heartbeat.interval.ms": "1000",
    # A mistyped topic is an error, not a new topic with the wrong settings.
    "auto.create.topics.enable": "false",
    # Of 512 MB of heap the default takes 128 MB for the cleaner alone.
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
}


class EmbeddedBroker:
    """A running broker. Made by `start`."""

    def __init__(self, server: GuardedServer, bootstrap_servers: str) -> None:
        self.server = server
        self.address = bootstrap_servers

    @classmethod
    async def start(cls, directory: DataDirectory, cache_dir: Path, *, port: int = 0, progress: Callable[[str], None]) -> Self:
        """Fetch the broker and format its storage if need be, start it, and wait until it serves metadata.

        `port` 0: the one of the last start in this directory, else a free one.

        Raises RetryLaterError (no download, no free port, no answer in time), FreeDiskSpaceError, FixHostError,
        ChooseOtherDirectoryError for the storage of another version, or ReadLogError when Java or the broker ends by itself.
        """
        jars = await jars_directory(BROKER_JARS, cache_dir, progress=progress)
        home = directory.kafka
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            (home / "log4j2.properties").write_text(_LOGGING_CONFIGURATION)
            if not (home / "data").is_dir():
                progress("Formatting the broker's storage…")
                await _format_storage(jars, directory)
            _check_format(home / "data")
            cache = java.StartupCache.for_jars(jars)
            ports = RememberedPorts(directory.path, progress)
            server, port = await _start_on_its_port(jars, directory, cache, ports, port)
            if cache.recording:
                progress("Recording what makes the broker start fast (once)…")
                await server.stop()
                if not cache.keep_recording(server.log_tail()):
                    progress("That was not possible; the broker will start a little slower.")
                server, port = await _start_on_its_port(jars, directory, cache, ports, port)
        except OSError as error:
            if says_disk_full(str(error)):
                raise disk_full(directory.path) from error
            raise FixHostError(
                f"{home} cannot be prepared for the broker: {error}. Nothing was started and no order was accepted. "
                "Make the data directory writable, or choose another: ORCHESTRATOR_DATA_DIR"
            ) from error
        return cls(server, f"127.0.0.1:{port}")

    def let_go(self) -> None:
        """Begin the stop without waiting for it."""
        self.server.let_go()

    async def stop(self) -> None:
        """Stop it in an orderly way."""
        await self.server.stop()

    async def until_ended(self) -> ReadLogError:
        """Wait until it has ended by itself; what to tell the operator."""
        code = await self.server.wait()
        return ReadLogError(
            f"The broker ended by itself (code {code}), so everything stops here. Every record that it acknowledged is on the disk, and "
            f"requests without an answer are read again at the next start: start again. The end of its log:\n{self.server.log_tail()}"
        )


def _write_properties(file: Path, data: Path, broker_port: int, controller_port: int) -> None:
    properties = {
        **_PROPERTIES,
        "log.dirs": str(data),
        "listeners": f"PLAINTEXT://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker_port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
    }
    # In a .properties file a backslash begins an escape.
    file.write_text("".join(f"{name}={value}\n".replace("\\", "\\\\") for name, value in properties.items()), encoding="utf-8")


def _java(jars: Path, home: Path, heap_megabytes: int, options: tuple[str, ...], *arguments: str) -> tuple[str, ...]:
    logging = f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}"
    return (java.executable(), f"-Xmx{heap_megabytes}m", *java.OPTIONS, *options, logging, "-cp", java.class_path(jars), *arguments)


async def _format_storage(jars: Path, directory: DataDirectory) -> None:
    home = directory.kafka
    unfinished, log = home / "data.unfinished", home / "broker.log"
    if unfinished.exists():
        await asyncio.to_thread(shutil.rmtree, unfinished)
    _write_properties(home / "format.properties", unfinished, free_port(), free_port())
    cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster_id.startswith("-"):
        # One in 64 does, and the formatter would take it for an option. Kafka's own ids never do.
        cluster_id = f"A{cluster_id[1:]}"
    arguments = ("kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(home / "format.properties"))
    command = Command(_java(jars, home, 256, (), *arguments), log, grace_seconds=2, keep_fds=(directory.lock_fd,))
    try:
        code = await run_to_end(command, _FORMAT_SECONDS_MAX)
    except TimeoutError:
        raise RetryLaterError(
            f"Formatting the broker's storage took longer than {_FORMAT_SECONDS_MAX:.0f} s, so it was given up; there was no data "
            f"in it yet. Start again when the machine is less busy; the log is {log}."
        ) from None
    if code != 0:
        output = log_tail(log)
        if is_disk_full(directory.path, output):
            raise disk_full(directory.path)
        raise ReadLogError(
            f"The broker's storage could not be formatted (code {code}); there was no data in it yet. The end of {log}:\n{output}"
        )
    (unfinished / _FORMATTED_BY).write_text(f"{KAFKA_VERSION}\n", encoding="utf-8")
    unfinished.rename(home / "data")


def _check_format(data: Path) -> None:
    file = data / _FORMATTED_BY
    version = file.read_text(encoding="utf-8").strip() if file.exists() else "of an unknown version"
    # Storage of an older Kafka is read by a newer one.
    if not version[:1].isdigit() or _numbers(version) > _numbers(KAFKA_VERSION):
        raise ChooseOtherDirectoryError(
            f"The broker's storage in {data} was made by Kafka {version}, and this version runs Kafka {KAFKA_VERSION}, which cannot read "
            "it. Nothing was changed: all records are still in it. Start with the software version that made it, or begin a new one "
            "elsewhere: ORCHESTRATOR_DATA_DIR=/some/other/path"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".") if number.isdigit())


async def _start_on_its_port(
    jars: Path, directory: DataDirectory, cache: java.StartupCache, ports: RememberedPorts, wanted: int
) -> tuple[GuardedServer, int]:
    """A broker that answers, and its port."""
    home = directory.kafka
    for _ in range(_PORT_ATTEMPTS_MAX):
        broker_port = await ports.take("broker", wanted, settings="--kafka-port, or ORCHESTRATOR_KAFKA_PORT")
        _write_properties(home / "server.properties", home / "data", broker_port, free_port(frozenset({broker_port})))
        server = await _launch(jars, directory, cache)
        try:
            if await _until_ready(server, broker_port, directory.path):
                return server, broker_port
        except BaseException:
            await server.stop()
            raise
        if not is_free(broker_port):
            # Else it was the controller's, which is another one the next time.
            ports.forget("broker")
    raise RetryLaterError(
        f"{_PORT_ATTEMPTS_MAX} times a free port of 127.0.0.1 was taken by another program before the broker could use it. No order "
        "was accepted and nothing stored was changed. Start again; if it persists, look for a program that opens very many connections."
    )


async def _launch(jars: Path, directory: DataDirectory, cache: java.StartupCache) -> GuardedServer:
    home = directory.kafka
    command = Command(
        _java(jars, home, 512, cache.options(), "kafka.Kafka", str(home / "server.properties")),
        home / "broker.log",
        grace_seconds=_RECORDING_STOP_SECONDS_MAX if cache.recording else _STOP_SECONDS_MAX,
        keep_fds=(directory.lock_fd,),
    )
    return await GuardedServer.start(command)


async def _until_ready(server: GuardedServer, port: int, path: Path) -> bool:
    """True when the broker serves its metadata; False when it ended because a port was taken."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _START_SECONDS_MAX
    while server.exit_code is None:
        if await broker_answers("127.0.0.1", port):
            return True
        if loop.time() >= deadline:
            raise RetryLaterError(
                f"The broker did not answer within {_START_SECONDS_MAX:.0f} s and was stopped; what is stored in it is safe. "
                f"Start again when the machine is less busy. The end of its log:\n{server.log_tail()}"
            )
        # There is no event to wait for before the broker answers: it is asked again.
        await asyncio.sleep(_POLL_SECONDS)
    output = java.own_words(server.log_tail(400), 60)
    if "Address already in use" in output:
        return False
    if is_disk_full(path, output):
        raise disk_full(path)
    raise ReadLogError(
        f"The broker ended while it started (code {server.exit_code}). No order was accepted; what it had acknowledged before is on the "
        f"disk. The end of its log says why:\n{java.own_words(output)}"
    )
