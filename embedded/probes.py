"""Whether a broker or a database answers yet. Each probe takes at most five seconds and says no rather than raise."""

import asyncio
import struct

import asyncpg

_SECONDS_MAX = 5
_ANSWER_BYTES_MAX = 1024 * 1024


async def broker_answers(host: str, port: int) -> bool:
    """True when a Metadata request (API 3, version 1, no topics) is told of at least one broker.

    Listening alone does not mean that a broker is ready: its port opens before the controller lets it in.
    """
    # Source: https://kafka.apache.org/protocol.html, request header v1 and Metadata v1. Size, key, version, correlation id, client id
    # (a nullable string: none), and an empty array of topics. The answer begins with its size, the correlation id, the brokers' number.
    request = struct.pack(">ihhihi", 14, 3, 1, 0, -1, 0)
    try:
        async with asyncio.timeout(_SECONDS_MAX):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                size, _, brokers = struct.unpack(">iii", await reader.readexactly(12))
                return bool(8 <= size <= _ANSWER_BYTES_MAX and brokers > 0)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def database_answers(url: str) -> bool:
    """True when a session can be opened: a server that starts or replays its log refuses them."""
    try:
        connection = await asyncpg.connect(url, timeout=_SECONDS_MAX)
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, TimeoutError):
        return False
    await connection.close(timeout=_SECONDS_MAX)
    return True
