"""The address of a daemon: taking it, and saying where it is."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from system.file_lock import lock_within
from workerd.engine.files import private
from workerd.errors import CannotListen
from workerd.settings import Settings

_BACKLOG = 4096  # as net.core.somaxconn is on Linux (listen(2))
# uvloop decrypts all that it has read before other connections have their turn. It reads on while a read fills its
# buffer of 256 KiB, so less than that must wait at a connection. Accepted sockets inherit it (tcp(7)).
_RECEIVE_BUFFER_BYTES = 32 << 10  # which the kernel doubles (socket(7))
_LOCK_SECONDS = 2.0  # of a file that was made just now
_NOTIFY_SECONDS = 2.0


@contextlib.contextmanager
def listen(settings: Settings, *, shared: bool = False) -> Iterator[socket.socket]:
    """Listen on the address of the settings.

    Args:
        shared: whether other processes listen there as well (socket(7), SO_REUSEPORT).

    Raises:
        CannotListen: it cannot be.
    """
    with bind(settings, shared=shared) as listening:
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            listening.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        yield listening


def bind(settings: Settings, *, shared: bool) -> socket.socket:
    """Take the address of the settings, without listening.

    Raises:
        CannotListen: it cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise _cannot_listen(settings, error) from error
    return bound


def _cannot_listen(settings: Settings, error: OSError) -> CannotListen:
    """Return the error for an address that cannot be listened on."""
    return CannotListen(settings.host, settings.port, error.strerror or str(error))


def is_advertised(state_directory: Path) -> bool:
    """Return whether the daemon of a state directory, which is alive, serves and is not about to end."""
    return _note(state_directory).exists()


def _note(state_directory: Path) -> Path:
    return state_directory / "endpoint"


@contextlib.contextmanager
def advertise(state_directory: Path, bound: socket.socket) -> Iterator[None]:
    """Announce where the daemon serves: on standard output, to a service manager, and in a note.

    The note is for the clients of the same user on this machine.
    """
    host, port = bound.getsockname()[:2]
    note = _note(state_directory)
    # Not localhost, which has several addresses: another account may listen at this port of the others.
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    new = note.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(new, "w", opener=private) as file:
        # Held for as long as this process lives: a note that nobody holds is a dead daemon's.
        lock_within(file.fileno(), new, _LOCK_SECONDS)
        file.write(f"https://{f'[{local}]' if ':' in local else local}:{port}\n")
        file.flush()
        new.rename(note)
        try:
            print(f"serving gRPC endpoint at {f'[{host}]' if ':' in host else host}:{port}", flush=True)  # noqa: T201
            _tell_service_manager("READY=1")
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                # Not that of a daemon that serves another state directory in this one's place.
                if os.path.samestat(os.fstat(file.fileno()), os.stat(note)):
                    note.unlink()


def _tell_service_manager(state: str) -> None:
    """Notify the service manager that started this process, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
            manager.settimeout(_NOTIFY_SECONDS)
            manager.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            manager.send(state.encode())
