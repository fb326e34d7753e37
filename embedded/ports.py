"""Ports of 127.0.0.1 that stay the same: remembered in the data directory, by what listens there.

1. A port that is remembered is taken again at the next start, so addresses that somebody wrote down stay true. One that another program has
   by then is given up, and that is said.
2. A new one lies below the range from which systems take the ports of outgoing connections, else any connection might have it when what
   listened there starts again.
3. The file is written whole: at worst a start chooses new ports.

Start with `RememberedPorts.take`.
"""

import asyncio
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from embedded.errors import FixHostError

FILE_NAME: Final = "ports.json"
PORT_MAX: Final = 65_535
HOST: Final = "127.0.0.1"
_FIRST: Final = 20_000
# Linux gives out 32768 and up, macOS and Windows 49152 and up.
_LAST: Final = 32_767
_TRIED_MAX: Final = 200
# How long what listened there before may take to stop after its parent was killed.
_RELEASE_SECONDS_MAX: Final = 25.0
_POLL_SECONDS: Final = 0.1


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        # As the servers do: what is left of closed connections does not count.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
            tried.listen(1)
        except OSError:
            return False
    return True


def free_port(taken: frozenset[int] = frozenset()) -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment, none of `taken`. Raises FixHostError where there is none."""
    for _ in range(_TRIED_MAX):
        port = random.randint(_FIRST, _LAST)
        if port not in taken and is_free(port):
            return port
    raise FixHostError(
        f"No free port of {HOST} was found between {_FIRST} and {_LAST}. Nothing was started and no order was accepted. Name one, or look "
        "for a program that opens very many."
    )


class RememberedPorts:
    """The ports in one data directory, which must exist. `said` gets sentences for people."""

    def __init__(self, directory: Path, said: Callable[[str], None]) -> None:
        self._file = directory / FILE_NAME
        self._said = said

    async def take(self, name: str, wanted: int = 0, host: str = HOST, *, settings: str = "") -> int:
        """The port for what is called `name`: `wanted` where it is not 0, else the one it had, else a free one; remembered from now on.

        Waits while it is still taken by what ran before. Raises FixHostError for a wanted one that stays taken; `settings` is where the
        person named it.
        """
        known = self._read()
        port = wanted or known.get(name, 0)
        if port and not await self._until_free(port, host):
            if wanted:
                raise FixHostError(
                    f"Port {wanted} of {host} is taken by another program. Nothing was started there and no order was accepted. End that "
                    f"program, or name another port: {settings}"
                )
            self._said(f"Port {port}, which the {name} had before, is taken by another program: it gets another.")
            port = 0
        port = port or free_port(frozenset(known.values()))
        if known.get(name) != port:
            # A start that changes nothing writes nothing: on a full disk the server itself says what to do.
            self._write({**known, name: port})
        return port

    def forget(self, name: str) -> None:
        """Chooses a new one the next time."""
        self._write({other: port for other, port in self._read().items() if other != name})

    async def _until_free(self, port: int, host: str) -> bool:
        loop = asyncio.get_running_loop()
        deadline, is_told = loop.time() + _RELEASE_SECONDS_MAX, False
        while not is_free(port, host):
            if loop.time() >= deadline:
                return False
            if not is_told:
                self._said(f"Waiting until port {port} is free…")
                is_told = True
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {name: port for name, port in found.items() if type(port) is int and 0 < port <= PORT_MAX}

    def _write(self, ports: dict[str, int]) -> None:
        unfinished = self._file.with_name(f".{FILE_NAME}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps(ports, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(self._file)
        except OSError as error:
            raise FixHostError(
                f"{self._file} cannot be written: {error.strerror}. Nothing was started and no order was accepted. Make the data directory "
                "writable, or choose another: ORCHESTRATOR_DATA_DIR"
            ) from error
