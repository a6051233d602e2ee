"""Witnesses, which receive the audit trail's heads: the system's journal, or a file outside of the state directory."""

import os
import socket
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from audit.chain import Head
from system.ownership import require_trusted
from workerd.engine.files import private

JOURNAL = "journal"
_JOURNAL_SOCKET = Path("/run/systemd/journal/socket")  # systemd.io/JOURNAL_NATIVE_PROTOCOL
_INFO = "6"  # syslog(3)


class Witness(Protocol):
    """A place that receives heads."""

    def keep(self, head: Head) -> None:
        """Record a head whose line is on the disk.

        Raises:
            OSError, Untrusted: the witness cannot be used.
        """


class JournalWitness:
    """The system's journal, over its native protocol.

    Args:
        directory: the trail's folder, which distinguishes daemons in the journal.
        address: the journal's socket.
    """

    def __init__(self, directory: Path, address: Path = _JOURNAL_SOCKET) -> None:
        self._directory = directory
        self._address = address

    def keep(self, head: Head) -> None:
        """Send one datagram, without waiting for room in the socket."""
        told = _told(head)
        fields = {
            "MESSAGE": f"audit head {told}",
            "PRIORITY": _INFO,
            "SYSLOG_IDENTIFIER": "workerd",
            "WORKERD_AUDIT_HEAD": told,
            "WORKERD_AUDIT_DIRECTORY": os.fspath(self._directory),
        }
        message = b"".join(_field(name, os.fsencode(value)) for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as journal:
            journal.connect(os.fspath(self._address))
            journal.send(message)


class FileWitness:
    """A file, to which each head is appended as a line: the time, and the head as `SEQ:HASH`.

    Args:
        path: the file. It is opened for each line, so it may be rotated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, head: Head) -> None:
        """Append a line, and wait until it is on the disk."""
        require_trusted(self._path)
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {_told(head)}\n".encode()
        # O_NONBLOCK: a FIFO that nobody reads is an error.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
        with open(private(os.fspath(self._path), flags), "ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())


def make_witness(name: str, directory: Path) -> Witness:
    """Return the witness that an option names: `journal`, or the path of a file.

    Args:
        directory: the trail's folder.
    """
    return JournalWitness(directory) if name == JOURNAL else FileWitness(Path(name))


def _told(head: Head) -> str:
    return f"{head.seq}:{head.hash}"


def _field(name: str, value: bytes) -> bytes:
    """Write a field; a value may have any bytes if its length precedes it."""
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
