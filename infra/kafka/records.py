"""Reads records as aiokafka does, and goes on where aiokafka would stop for ever: at a header whose name is not UTF-8.

Kafka's protocol wants UTF-8, but no broker checks it and librdkafka sends any bytes. aiokafka's consumer raises UnicodeDecodeError for such
a record at every read, so that one foreign record would keep everything behind it from being read.

Invariants:
1. What aiokafka can read is read by aiokafka, at its speed.
2. A name that is no UTF-8 is read with `\\xff` for each wrong byte; key, value, header values and offsets stay as they are.
3. Corrupt records raise as before.

`read_any_header_name` switches it on for the consumers of this process. tests/integration/test_foreign_clients.py has such records.
"""

from collections.abc import Iterator
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

_MAGIC_WITH_HEADERS: Final = 2


class _LenientText(bytearray):
    """Bytes of which every part can be decoded."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return _LenientText(part) if isinstance(index, slice) else part

    def decode(self, encoding: str = "utf-8", _errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _LenientBatch(_DefaultRecordBatchPy):
    """aiokafka's reader in plain Python, over lenient text. Slow: only for batches that need it."""

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientText(self._buffer)


class _Batch:
    """A batch as aiokafka reads it, read again leniently when that fails. The rest of its interface is passed on."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                yield record
                read += 1
        except (UnicodeDecodeError, CorruptRecordException) as error:
            # aiokafka's reader in plain Python, in use where there is no compiled one, calls both the same.
            if not isinstance(error, UnicodeDecodeError) and not isinstance(error.__cause__, UnicodeDecodeError):
                raise
            for number, record in enumerate(_LenientBatch(self._data)):
                if number >= read:
                    yield record


class _Records(_MemoryRecordsPy):
    """The batches of one fetched block."""

    def next_batch(self, *arguments: Any) -> Any:
        data = self._next_slice
        batch = super().next_batch(*arguments)
        return _Batch(batch, data) if batch is not None and data is not None and batch.magic >= _MAGIC_WITH_HEADERS else batch


def read_any_header_name() -> None:
    """Makes aiokafka's consumers of this process read header names of any bytes. Harmless when called again."""
    fetcher.MemoryRecords = _Records
