"""Writes the exchange log durably: one fdatasync for all that wait (group commit).

Invariants:
1. `durable()` returns only after everything appended before the call is on disk.
2. Lines are written in the order of `append`; after a failed write nothing more is written or confirmed, and `failed` is set: the
   process must end.
3. One process per data directory (a lock on the log file).

Start at `Journal.open`.
"""

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from simulator.records import Record, encode, read_with_end

LOG_NAME = "exchange-log.jsonl"


class DataDirectoryInUse(Exception):
    """Another process holds this data directory."""


class Journal:
    """The log of one running exchange. `failed` gets the error of a write that failed."""

    def __init__(self, path: Path, descriptor: int, on_failure: Callable[[BaseException], None]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._on_failure = on_failure
        self._pending: list[bytes] = []
        self._appended = asyncio.Event()
        self._batch = asyncio.Event()
        self._writing: asyncio.Event | None = None
        self._failed = False
        self._stopping = False

    @classmethod
    def open(cls, data_dir: Path, on_failure: Callable[[BaseException], None]) -> tuple["Journal", Iterator[Record]]:
        """Opens or makes the log; the iterator gives its records and must be read to its end before the first append.

        A torn last line is cut off with a message. Raises DataDirectoryInUse, and LogDamaged while reading.
        """
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / LOG_NAME
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise DataDirectoryInUse(
                f"the data directory {data_dir} is used by another simulated exchange; stop that one or choose another --data-dir"
            ) from error
        if is_new:
            directory = os.open(data_dir, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        journal = cls(path, descriptor, on_failure)
        return journal, journal._read_back()

    def _read_back(self) -> Iterator[Record]:
        end = 0
        for record, offset in read_with_end(self.path):
            end = offset
            yield record
        torn = os.fstat(self._descriptor).st_size - end
        if torn > 0:
            sys.stderr.write(f"{self.path.name}: the last {torn} bytes are no whole record and are cut off: nobody was told of them\n")
            os.ftruncate(self._descriptor, end)
        # What the previous process wrote but had not synced is about to be acted on.
        os.fdatasync(self._descriptor)

    def append(self, record: Record) -> None:
        """Queues a record; call `durable` before anybody is told. The queue is bounded by the requests that wait for it."""
        self._pending.append(encode(record))
        self._appended.set()

    async def durable(self) -> None:
        """Waits until everything appended so far is on disk; returns at once when it is."""
        if self._pending:
            await self._batch.wait()
        elif self._writing is not None:
            await self._writing.wait()
        if self._failed:
            # Nobody may be told: the process ends, and whoever asks is left without an answer.
            await asyncio.Event().wait()

    async def run(self) -> None:
        """Writes until `stop` is called and all is written."""
        loop = asyncio.get_running_loop()
        while self._pending or not self._stopping:
            await self._appended.wait()
            self._appended.clear()
            if not self._pending:
                continue
            lines, self._pending = self._pending, []
            batch, self._batch = self._batch, asyncio.Event()
            self._writing = batch
            try:
                await loop.run_in_executor(None, self._write, b"".join(lines))
            except OSError as error:
                self._failed = True
                self._on_failure(error)
                return
            finally:
                self._writing = None
                batch.set()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fdatasync(self._descriptor)

    def stop(self) -> None:
        """Lets `run` end after the records appended so far."""
        self._stopping = True
        self._appended.set()

    def close(self) -> None:
        """Lets go of the file and its lock; call it after `run` has ended."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
