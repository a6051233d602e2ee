"""A file system that another account serves, and that says of its files that they are root's, is not trusted."""

import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.ownership import Untrusted, require_trusted

SOMEBODY = 23461
_FORGET, _GETATTR, _INIT = 2, 3, 26  # fuse(4), include/uapi/linux/fuse.h
_ENOSYS, _MNT_DETACH = 38, 2
_libc = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system for another account")


def serve(device: int) -> None:
    """Answer the kernel: there is one folder, and it belongs to root."""
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError:  # it was unmounted
            return
        _, operation, unique, node = struct.unpack_from("<IIQQ", request)
        if operation == _FORGET:
            continue
        error, answer = 0, b""
        if operation == _INIT:
            answer = struct.pack("<IIII", 7, 31, 65536, 0).ljust(64, b"\0")
        elif operation == _GETATTR:
            attributes = struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
            answer = struct.pack("<QII", 1, 0, 0) + attributes
        else:
            error = -_ENOSYS
        os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)


def mount(folder: Path, device: int, account: int) -> None:
    """Mount as `fusermount` does for an account, which root alone may do otherwise (mount.fuse3(8))."""
    options = f"fd={device},rootmode=40755,user_id={account},group_id={account},allow_other"
    if _libc.mount(b"theirs", os.fsencode(folder), b"fuse", 0, options.encode()) != 0:
        pytest.skip(f"no FUSE file system can be mounted here: {os.strerror(ctypes.get_errno())}")


@pytest.fixture(params=[SOMEBODY, 0])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, int]]:
    """A folder where an account has mounted a file system, and the account."""
    (tmp_path / "mounted").mkdir()
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"there is no FUSE here: {error}")
    try:
        mount(tmp_path / "mounted", device, request.param)
        server = threading.Thread(target=serve, args=(device,), daemon=True)
        server.start()
        yield tmp_path / "mounted", request.param
        _libc.umount2(os.fsencode(tmp_path / "mounted"), _MNT_DETACH)
        server.join(10)
    finally:
        os.close(device)


def test_a_file_system_that_another_account_serves_is_refused(served: tuple[Path, int]) -> None:
    folder, account = served
    found = folder.stat()
    assert (found.st_uid, found.st_mode) == (0, 0o40755)
    if account == 0:
        require_trusted(folder)
        return
    for path in (folder, folder / "file"):
        with pytest.raises(Untrusted, match=f"{folder} is refused: uid {account} serves the file system"):
            require_trusted(path)
