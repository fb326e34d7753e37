"""kcat, a producer that is not ours: C, librdkafka, what people use by hand and in scripts.

Every call is one process with a time limit. Start with `publish`, or `publish_lines` for many records. Tests that can do without it use
librdkafka as a Python program does where kcat is not installed (`IS_INSTALLED`; Debian and Ubuntu: `apt-get install kcat`).
"""

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

_SECONDS_MAX = 30.0
KEY_DELIMITER = "\t"

IS_INSTALLED = shutil.which("kcat") is not None
# For tests of what only kcat can do.
needs_kcat = pytest.mark.skipif(not IS_INSTALLED, reason="kcat is not installed (Debian and Ubuntu: apt-get install kcat)")


class NotDelivered(Exception):
    """kcat ended with an error; its words."""


@dataclass(frozen=True)
class Kcat:
    """kcat for one broker and topic."""

    bootstrap_servers: str
    topic: str

    async def publish(
        self,
        value: bytes | None,
        directory: Path,
        *,
        key: str | None = None,
        headers: Sequence[bytes] = (),
        partition: int = -1,
        codec: str = "none",
        properties: Sequence[str] = (),
    ) -> None:
        """Publishes one record. None and b"" become a tombstone. `headers` are `name=value`, or `name` for one without a value.

        The value is put in a file in `directory`, so that line ends in it are kept. Raises NotDelivered.
        """
        options: list[str | bytes] = ["-p", str(partition), "-z", codec]
        options += ["-k", key] if key is not None and value else []
        for header in headers:
            options += ["-H", header]
        for text in properties:
            options += ["-X", text]
        if not value:
            # kcat makes no record of an empty file or line, but one of a line with a key and nothing behind it.
            await self._run([*options, "-Z", "-K", KEY_DELIMITER], f"{key or ''}{KEY_DELIMITER}\n".encode())
            return
        file = directory / "kcat-value"
        file.write_bytes(value)
        await self._run([*options, str(file)], b"")

    async def publish_lines(self, lines: Sequence[tuple[str, str]], *, codec: str = "none", properties: Sequence[str] = ()) -> None:
        """Publishes (key, value) pairs from standard input, one a line. Raises NotDelivered."""
        options: list[str | bytes] = ["-K", KEY_DELIMITER, "-z", codec]
        for text in properties:
            options += ["-X", text]
        await self._run(options, "".join(f"{key}{KEY_DELIMITER}{value}\n" for key, value in lines).encode())

    async def _run(self, options: Sequence[str | bytes], stdin: bytes) -> None:
        process = await asyncio.create_subprocess_exec(
            *("kcat", "-P", "-b", self.bootstrap_servers, "-t", self.topic, *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A configuration file of the developer's would change what is sent.
            env={**os.environ, "KCAT_CONFIG": os.devnull},
        )
        try:
            async with asyncio.timeout(_SECONDS_MAX):
                output, _ = await process.communicate(stdin)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0 or b"Delivery failed" in output:
            raise NotDelivered(output.decode(errors="replace"))
