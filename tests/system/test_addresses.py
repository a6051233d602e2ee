"""Endpoints with several addresses, and strangers at one of them."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pki.files import load_pair
from pki.store import PkiFolder
from tests.daemon import Daemon
from tests.strangers import one_after_another, tls_server
from workerctl.client import Client
from workerctl.errors import GaveUp, Refused
from workerctl.retry import Patience

_STRANGER = "127.0.0.2"
Stranger = Callable[[tuple[str, int], Path], AbstractContextManager[object]]


def silent(address: tuple[str, int], path: Path) -> AbstractContextManager[object]:
    """Accept connections and say nothing."""
    del path

    def listen(connected: socket.socket) -> None:
        while connected.recv(1 << 16):
            pass

    return one_after_another(listen, address)


def closing(address: tuple[str, int], path: Path) -> AbstractContextManager[object]:
    """Accept connections and close them."""
    del path
    return one_after_another(socket.socket.close, address)


def plain(address: tuple[str, int], path: Path) -> AbstractContextManager[object]:
    """Answer connections in plain HTTP."""
    del path

    def answer(connected: socket.socket) -> None:
        connected.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connected.recv(1 << 16)

    return one_after_another(answer, address)


def impostor(address: tuple[str, int], path: Path) -> AbstractContextManager[object]:
    """Shake hands with a certificate of another authority."""
    folder = PkiFolder(path / "impostor")
    folder.initialize()
    return tls_server(load_pair(folder.server_certificate), path, address=address)


@contextlib.contextmanager
def nobody(address: tuple[str, int], path: Path) -> Iterator[None]:
    """Listen nowhere."""
    del address, path
    yield


@pytest.fixture
def with_stranger_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give localhost two addresses, as a machine with IPv6 has it, of which the daemon has the second."""

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        assert host == "localhost"
        tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*tcp, (address, port)) for address in (_STRANGER, "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("with_stranger_first")
@pytest.mark.parametrize("stranger", [silent, closing, plain, impostor, nobody])
async def test_a_stranger_at_one_address_does_not_keep_a_client_from_the_daemon_at_the_next(
    shared_daemon: Daemon, tmp_path: Path, stranger: Stranger
) -> None:
    began = time.monotonic()
    with stranger((_STRANGER, shared_daemon.port), tmp_path):
        async with Client(shared_daemon.target(), patience=Patience(keepalive_seconds=4)) as client:
            await client.whoami()
    assert time.monotonic() - began < 4  # all that both addresses may take


@pytest.mark.usefixtures("with_stranger_first")
async def test_a_certificate_that_does_not_hold_is_told_before_an_address_where_nobody_listens(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    with impostor(("127.0.0.1", 0), tmp_path) as endpoint:
        async with Client(shared_daemon.target(endpoint=str(endpoint))) as client:
            with pytest.raises(Refused, match="its certificate does not hold"):
                await client.whoami()


def test_a_daemon_tells_clients_of_its_account_a_single_address(shared_daemon: Daemon) -> None:
    assert (shared_daemon.state / "endpoint").read_text() == f"https://127.0.0.1:{shared_daemon.port}\n"


@pytest.mark.parametrize("stranger", [impostor, plain])
def test_a_follower_waits_for_the_daemon_while_a_stranger_has_its_port(
    daemon: Daemon, tmp_path: Path, stranger: Stranger
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = daemon.command("run", "--", "sh", "-c", f"echo before; cat {gate}")
    daemon.listen = f"127.0.0.1:{daemon.port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"before\n"
        daemon.stop(signal.SIGKILL)
        with stranger(("127.0.0.1", daemon.port), tmp_path):
            said = run.stderr.readline()
            while said and b"another program may have its port" not in said:
                said = run.stderr.readline()
        assert b"; trying again from byte 7" in said, "the client ended"
        daemon.start()
        gate.write_text("after\n")
        output, errors = run.communicate(timeout=60)
    assert (output, run.returncode) == (b"after\n", 0), errors


async def test_a_stranger_at_a_daemons_port_is_not_waited_out_longer_than_is_wanted(
    daemon: Daemon, tmp_path: Path
) -> None:
    async with Client(daemon.target(), patience=Patience(retry_seconds=1)) as client:
        await client.whoami()
        daemon.stop(signal.SIGKILL)
        given_up = pytest.raises(GaveUp, match=r"its certificate does not hold.*\(gave up after 1 s\)")
        with impostor(("127.0.0.1", daemon.port), tmp_path), given_up:
            await client.whoami()


async def test_a_stranger_at_the_first_contact_is_refused_at_once(shared_daemon: Daemon, tmp_path: Path) -> None:
    with impostor(("127.0.0.1", 0), tmp_path) as endpoint:
        async with Client(shared_daemon.target(endpoint=str(endpoint))) as client:
            with pytest.raises(Refused):
                await client.whoami()


async def test_small_requests_are_sent_at_once(shared_daemon: Daemon) -> None:
    """Nagle's algorithm would have them wait for an acknowledgement (tcp(7), TCP_NODELAY)."""
    async with shared_daemon.client() as client:
        await client.whoami()
        assert client._channel is not None and client._channel._protocol is not None
        transport = client._channel._protocol.connection._transport
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
