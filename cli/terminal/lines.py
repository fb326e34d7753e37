"""Reads a file or a pipe line by line without blocking the event loop and within bounds.

Invariants:
1. A line longer than the limit takes no more memory than the limit, and is given as `TooLong` with its number.
2. Waiting for a pipe or a terminal can be canceled at any time: no thread is left behind in a read.

Start with `numbered_lines`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end. `number` counts from 1, blank lines included."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line that was skipped for its length."""

    number: int


async def numbered_lines(descriptor: int, bytes_max: int) -> AsyncIterator[Line | TooLong]:
    """The lines of an open file descriptor, the last one also without a line feed; blank ones are left out. Raises OSError."""
    number, kept, skipping = 1, b"", False
    async for chunk in _chunks(descriptor):
        first, *rest = chunk.split(b"\n")
        for part in (first, *rest)[:-1] if rest else ():
            line = kept + part
            if skipping or len(line) > bytes_max:
                yield TooLong(number)
            elif line.strip():
                yield Line(number, line.strip())
            number, kept, skipping = number + 1, b"", False
        kept += rest[-1] if rest else first
        if len(kept) > bytes_max:
            kept, skipping = b"", True
    if skipping:
        yield TooLong(number)
    elif kept.strip():
        yield Line(number, kept.strip())


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    is_waited_for = True
    while True:
        if is_waited_for:
            is_waited_for = await _until_readable(descriptor)
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
        await asyncio.sleep(0)


async def _until_readable(descriptor: int) -> bool:
    """Waits until a read will not block; False for what never blocks and cannot be waited for, as a file on a disk."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not readable.done():
            readable.set_result(None)

    try:
        loop.add_reader(descriptor, tell)
    except PermissionError:
        # epoll(7) refuses it.
        return False
    try:
        await readable
    finally:
        # Before the read: the loop would tell again of what is read by then, and the next read would block everything.
        loop.remove_reader(descriptor)
    return True
