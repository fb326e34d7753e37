"""Ports that stay the same from start to start."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedded import ports as embedded_ports
from embedded.errors import FixHostError
from embedded.ports import FILE_NAME, RememberedPorts, free_port, is_free


@contextmanager
def _taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield int(other.getsockname()[1])


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def ports(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> RememberedPorts:
    monkeypatch.setattr(embedded_ports, "_RELEASE_SECONDS_MAX", 0.3)
    return RememberedPorts(tmp_path, said.append)


async def test_port_is_the_same_at_the_next_start(ports: RememberedPorts, tmp_path: Path) -> None:
    """Another process that asks in the same directory gets it too; another name gets another one."""
    first = await ports.take("broker")
    assert await RememberedPorts(tmp_path, print).take("broker") == first
    assert await ports.take("worker 1") != first


async def test_port_that_was_asked_for_is_remembered(ports: RememberedPorts) -> None:
    """Asked for once, it is there at the next start as well."""
    wanted = free_port()
    assert await ports.take("broker", wanted) == wanted
    assert await ports.take("broker") == wanted


async def test_remembered_port_that_another_program_has_is_given_up_and_that_is_said(ports: RememberedPorts, said: list[str]) -> None:
    """The start goes on: nobody asked for this one."""
    with _taken() as port:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(embedded_ports, "is_free", lambda *_: True)
            assert await ports.take("broker", port) == port
        other = await ports.take("broker")
    assert other != port
    assert any(str(port) in text for text in said)


async def test_port_that_was_asked_for_and_is_taken_is_an_error_that_names_it(ports: RememberedPorts) -> None:
    """Whoever asked for it counts on it."""
    with _taken() as port, pytest.raises(FixHostError, match=rf"Port {port} .* --kafka-port"):
        await ports.take("broker", port, settings="--kafka-port")


async def test_port_that_is_released_a_moment_later_is_waited_for(ports: RememberedPorts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed start left behind stops by itself."""
    answers = iter([False, False, True])
    monkeypatch.setattr(embedded_ports, "is_free", lambda *_: next(answers))
    assert await ports.take("broker", 25_000) == 25_000


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"broker": "x"}', '{"broker": 99999}', '{"broker": true}', '{"broker": -1}'])
async def test_file_that_cannot_be_read_means_new_ports(content: str, ports: RememberedPorts, tmp_path: Path) -> None:
    """Nothing depends on it."""
    (tmp_path / FILE_NAME).write_text(content)
    assert is_free(await ports.take("broker"))


def test_new_ports_lie_below_those_of_outgoing_connections() -> None:
    """Else any connection of any program might have it while a server starts again."""
    assert all(20_000 <= free_port() < 32_768 for _ in range(50))
