"""What a client may find at an address instead of its daemon."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pki.authority import Credential
from pki.files import write_pair


@contextlib.contextmanager
def one_after_another(
    answer: Callable[[socket.socket], object], address: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[str]:
    """Answer connections to an address in some way; yield the endpoint, `https://localhost:PORT`."""

    def serve() -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            with connected:
                answer(connected)

    with socket.create_server(address) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # wakes accept(2)
            thread.join()


@contextlib.contextmanager
def tls_server(
    credential: Credential,
    path: Path,
    version: ssl.TLSVersion | None = None,
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[str]:
    """Serve nothing but handshakes on an address; yield the endpoint."""
    write_pair(path / "stranger.crt", credential)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "stranger.crt", path / "stranger.key")
    context.set_alpn_protocols(["h2"])
    if version is not None:
        context.maximum_version = version

    def shake_hands(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connected:
            connected.recv(1)

    with one_after_another(shake_hands, address) as endpoint:
        yield endpoint
