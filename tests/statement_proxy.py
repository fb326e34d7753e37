"""A way to PostgreSQL that is cut between two statements: before the n-th reaches the server, or after it was carried out, unanswered.

It counts what a client asks for and waits for (simple queries and Sync messages of the extended protocol), so that a cut falls exactly
between two of them: PostgreSQL manual, "Message Flow" and "Message Formats".
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

COMMIT = 0
_HEADER = 5
_CHUNK = 1 << 16


@dataclass(slots=True)
class _Frames:
    """Cuts a stream into messages: a byte for the type, four for the length, the rest."""

    pending: bytes = b""

    def of(self, data: bytes) -> Iterator[bytes]:
        data, begin = self.pending + data, 0
        while len(data) - begin >= _HEADER:
            end = begin + 1 + int.from_bytes(data[begin + 1 : begin + _HEADER])
            if end > len(data):
                break
            yield data[begin:end]
            begin = end
        self.pending = data[begin:]


@dataclass(slots=True)
class StatementProxy:
    """Listens on a Unix socket of its own. One cut at a time."""

    server: str
    directory: Path
    after: bool = False
    _cut: list[int] = field(default_factory=list)
    _at: int | None = None
    _seen: int = 0
    _listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The address to use instead of the server's."""
        parts = urlsplit(self.server)
        return urlunsplit(parts._replace(query=f"host={quote(str(self.directory))}"))

    async def start(self) -> None:
        self._listener = await asyncio.start_unix_server(self._serve, self.directory / ".s.PGSQL.5432")

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def cut_at(self, statement: int, *, after: bool) -> None:
        """Cuts the connection that asks for the n-th statement from now on, counted from 1; at `COMMIT` the one that commits."""
        self._at, self.after, self._seen = statement, after, 0

    def let_through(self) -> list[int]:
        """Cuts no more; returns the server's processes whose connections were cut since the last call."""
        self._at = None
        cut, self._cut = self._cut, []
        return cut

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        host = parse_qs(urlsplit(self.server).query)["host"][0]
        server, to_server = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.5432")
        # The first message has no type.
        size = await client.readexactly(4)
        to_server.write(size + await client.readexactly(int.from_bytes(size) - 4))
        connection = _Connection(self, to_client, to_server)
        try:
            await asyncio.gather(connection.relay_questions(client), connection.relay_answers(server))
        finally:
            for writer in (to_client, to_server):
                writer.transport.abort()

    def falls_here(self, frame: bytes) -> bool:
        """Whether the cut falls on the statement that is asked for now."""
        self._seen += 1
        if self._at is None or (b"COMMIT" not in frame if self._at == COMMIT else self._at != self._seen):
            return False
        self._at = None
        return True

    def note_cut(self, process: int) -> None:
        self._cut.append(process)


@dataclass(slots=True)
class _Connection:
    proxy: StatementProxy
    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    process: int = 0
    mute: bool = False

    async def relay_questions(self, client: asyncio.StreamReader) -> None:
        frames = _Frames()
        while data := await client.read(_CHUNK):
            passed = bytearray()
            for frame in frames.of(data):
                if frame[:1] in b"QS" and self.proxy.falls_here(frame):
                    self.mute = True
                    if not self.proxy.after:
                        self._cut()
                        return
                passed += frame
            self.to_server.write(passed)
        self.to_server.transport.abort()

    async def relay_answers(self, server: asyncio.StreamReader) -> None:
        frames = _Frames()
        while data := await server.read(_CHUNK):
            for frame in frames.of(data):
                if frame[:1] == b"K":
                    self.process = int.from_bytes(frame[5:9])
                # ReadyForQuery: the statement has been carried out.
                if self.mute and frame[:1] == b"Z":
                    self._cut()
                    return
            if not self.mute:
                self.to_client.write(data)
        self.to_client.transport.abort()

    def _cut(self) -> None:
        self.proxy.note_cut(self.process)
        self.to_client.transport.abort()
        self.to_server.transport.abort()
