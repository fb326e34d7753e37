"""Reading JSON Lines from files and pipes."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from cli.show.submit import user_of
from cli.terminal.lines import Line, TooLong, numbered_lines


async def _read(path: Path, bytes_max: int = 1_000) -> list[Line | TooLong]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return [line async for line in numbered_lines(descriptor, bytes_max)]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n \n", []),
        (b"a", [Line(1, b"a")]),
        (b"a\n", [Line(1, b"a")]),
        (b"a\r\nb\r\n", [Line(1, b"a"), Line(2, b"b")]),
        (b"\na\n\n  b  ", [Line(2, b"a"), Line(4, b"b")]),
        (b"\xff\xfe\n", [Line(1, b"\xff\xfe")]),
    ],
)
async def test_lines_of_a_file_are_numbered_with_blank_ones_counted(tmp_path: Path, content: bytes, expected: list[Line]) -> None:
    """The numbers are those an editor shows; blanks at the ends are no part of a line."""
    (tmp_path / "file").write_bytes(content)
    assert await _read(tmp_path / "file") == expected


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 200_000])
async def test_lines_around_the_size_of_a_chunk_stay_whole(tmp_path: Path, size: int) -> None:
    """A line is put together from as many chunks as it takes."""
    (tmp_path / "file").write_bytes(b"x" * size + b"\n" + b"y\n")
    assert await _read(tmp_path / "file", 1_000_000) == [Line(1, b"x" * size), Line(2, b"y")]


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_line_that_is_too_long_is_skipped_and_named(tmp_path: Path, end: bytes) -> None:
    """Those around it are read, also when it is the last one."""
    (tmp_path / "file").write_bytes(b"a\n" + b"x" * 300_000 + b"\nb\n" + b"y" * 300_000 + end)
    assert await _read(tmp_path / "file") == [Line(1, b"a"), TooLong(2), Line(3, b"b"), TooLong(4)]


async def test_lines_of_a_pipe_come_when_they_are_written() -> None:
    """A line is given before the next one is written: nothing waits for the end of the pipe."""
    read_end, write_end = os.pipe()
    lines = numbered_lines(read_end, 1_000)
    os.write(write_end, b"first\nsec")
    assert await asyncio.wait_for(anext(lines), 60) == Line(1, b"first")
    os.write(write_end, b"ond\n")
    assert await asyncio.wait_for(anext(lines), 60) == Line(2, b"second")
    os.close(write_end)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(lines), 60)
    os.close(read_end)


async def test_silence_after_a_line_does_not_block_the_event_loop() -> None:
    """While the next line is not there everything else goes on, however often that happens."""
    read_end, write_end = os.pipe()
    lines = numbered_lines(read_end, 1_000)
    for number in range(1, 30):
        waiting = asyncio.ensure_future(anext(lines))
        # Let the loop look at the silent pipe, then several times at the full one.
        await asyncio.sleep(0.001)
        assert not waiting.done()
        os.write(write_end, b"x\n")
        assert await asyncio.wait_for(waiting, 60) == Line(number, b"x")
    os.close(write_end)
    os.close(read_end)


async def test_waiting_for_a_silent_pipe_can_be_canceled_without_a_thread_left() -> None:
    """Ctrl-C while nothing is typed ends the command at once."""
    read_end, write_end = os.pipe()
    threads = threading.active_count()
    waiting = asyncio.ensure_future(anext(numbered_lines(read_end, 1_000)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 60)
    assert threading.active_count() == threads
    os.close(write_end)
    os.close(read_end)


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        (b'{"user_id": "alice", "x": 1}', "alice"),
        (b'{"user_id": 7}', ""),
        (b"{}", ""),
        (b"[]", None),
        (b'"alice"', None),
        (b"not json", None),
        (b'{"a": NaN}', None),
        (b"\xff", None),
        (b"{" * 5_000, None),
    ],
)
def test_user_of_a_line_is_its_key_and_none_where_it_is_no_object(value: bytes, user_id: str | None) -> None:
    """The key is the user's id, empty where there is none; what is no JSON object is told apart."""
    assert user_of(value) == user_id
