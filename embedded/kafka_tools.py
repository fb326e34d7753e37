"""Kafka's own console tools, run against any broker: what operators use to look at lag and transactions, as rows.

A second opinion that shares no code with our clients. Each call starts a Java process of about a second.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from embedded import java
from embedded.errors import RetryLaterError
from embedded.jars import TOOLS_JARS, jars_directory

_SECONDS_MAX = 60.0
_OUTPUT_LENGTH_MAX = 2000
_GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
_TRANSACTIONS = "org.apache.kafka.tools.TransactionsCommand"


@dataclass(frozen=True)
class PartitionLag:
    """One partition of a consumer group; offsets in records, None where the group has committed none."""

    topic: str
    partition: int
    current_offset: int | None
    log_end_offset: int | None
    lag: int | None


@dataclass(frozen=True)
class TransactionState:
    """One transactional id as its coordinator knows it: `Empty`, `Ongoing`, `CompleteCommit`, `CompleteAbort` …"""

    transactional_id: str
    coordinator: int
    producer_id: int
    state: str


@dataclass(frozen=True)
class KafkaTools:
    """The tools, fetched, for one broker. Made by `for_broker`."""

    bootstrap_servers: str
    jars: Path

    @classmethod
    async def for_broker(cls, bootstrap_servers: str, cache_dir: Path, *, progress: Callable[[str], None]) -> "KafkaTools":
        """Fetch the tools if need be (raises as `jars_directory` does)."""
        return cls(bootstrap_servers, await jars_directory(TOOLS_JARS, cache_dir, progress=progress))

    async def describe_group(self, group: str) -> tuple[PartitionLag, ...]:
        """`kafka-consumer-groups --describe`: one row for each partition that the group has or had.

        Raises RetryLaterError with the tool's words when the group does not exist or the broker does not answer.
        """
        output = await self._run(_GROUPS, "--describe", "--group", group)
        return tuple(
            PartitionLag(
                row["TOPIC"],
                int(row["PARTITION"]),
                _number(row["CURRENT-OFFSET"]),
                _number(row["LOG-END-OFFSET"]),
                _number(row["LAG"]),
            )
            for row in _rows(output)
            # Members without a partition have a row as well.
            if row["TOPIC"] != "-"
        )

    async def list_transactions(self) -> tuple[TransactionState, ...]:
        """`kafka-transactions list`: every transactional id that the broker remembers. Raises as `describe_group` does."""
        return tuple(
            TransactionState(row["TransactionalId"], int(row["Coordinator"]), int(row["ProducerId"]), row["TransactionState"])
            for row in _rows(await self._run(_TRANSACTIONS, "list"))
        )

    async def _run(self, tool: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(java.executable(), "-Xmx256m", *java.OPTIONS, "-cp", java.class_path(self.jars), tool),
            *("--bootstrap-server", self.bootstrap_servers, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_SECONDS_MAX):
                out, err = await process.communicate()
        except TimeoutError:
            raise self._failed(f"no answer within {_SECONDS_MAX:.0f} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        output = out.decode(errors="replace").strip()
        # The group tool ends with 0 also when it has failed.
        if process.returncode != 0 or output.startswith("Error"):
            raise self._failed(f"{output} {err.decode(errors='replace').strip()}"[:_OUTPUT_LENGTH_MAX])
        return output

    def _failed(self, reason: str) -> RetryLaterError:
        return RetryLaterError(
            f"Kafka's tools got no answer from {self.bootstrap_servers}: {reason}. Nothing was changed: they only read. "
            "Check the address and the name of the group, then ask again."
        )


def _rows(output: str) -> list[dict[str, str]]:
    """A table of one header line and values without blanks in them, as the tools print it."""
    lines = [line.split() for line in output.splitlines() if line.strip()]
    return [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)
