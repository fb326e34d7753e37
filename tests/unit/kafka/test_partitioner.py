"""Keys land on the partitions that every other client would choose."""

import random

import pytest
from aiokafka import partitioner as aiokafka_partitioner

from infra.kafka.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # The Java client's own cases (org.apache.kafka.common.utils.UtilsTest, testMurmur2).
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_known_keys_hash_as_in_the_java_client(key: bytes, expected: int) -> None:
    """The hash is Kafka's, as its own tests state it."""
    assert murmur2(key) == expected & 0xFFFFFFFF


def test_partition_of_any_key_is_what_aiokafka_chooses() -> None:
    """Keys of every length go where aiokafka's producer would put them, so that a key never has records on two partitions."""
    chance = random.Random(5)
    partitions = list(range(7))
    for length in range(70):
        key = chance.randbytes(length)
        assert partition_of(key, partitions) == aiokafka_partitioner.DefaultPartitioner()(key, partitions, partitions)


def test_partition_of_no_key_spreads() -> None:
    """Records without a key do not pile up on one partition."""
    assert {partition_of(None, [0, 1, 2]) for _ in range(200)} == {0, 1, 2}
