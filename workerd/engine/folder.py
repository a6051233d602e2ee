"""A job's folder: which file is what, and how each is read and replaced.

    spec      what was asked, by whom, when (JSON)
    lock      held with flock(2) by the job's supervisor, or by who is about to start one, for as long as it lives
    control   a FIFO on which the supervisor takes orders to stop
    status    where the job stands (JSON), replaced by its supervisor
    reserve   room on the disk for one more status, given up when there is no other; gone when the job has ended
    output    the bytes of both streams, interleaved as they came
    index     what of `output` is whose (`workerd.engine.record`)
    fault     what went wrong inside the supervisor, for people; usually absent
    shares    who besides the owner may do what with the job (JSON), replaced as a whole; absent until it is shared
    told      what `control` becomes when the job's end has been told to whoever wanted to know

A free lock means that nobody watches over the job. Unlike a process id a lock cannot be recycled.

The folder itself is locked, with flock(2) too, by who changes `shares` and by who takes the folder away.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workerd.engine.errors import NO_ROOM, FormatTooNew, SpoolCorrupt
from workerd.engine.job import FORMAT_VERSION, JobSpec, JobStatus, Share, StopOrder, User

_RESERVE_BYTES = 8192


def is_no_room(error: OSError) -> bool:
    """Tell whether it was for want of room on the disk that something could not be written."""
    return error.errno in NO_ROOM


class _Version(msgspec.Struct):
    """The one field of a spec that every format has."""

    format: int


class _Owned(msgspec.Struct):
    """The field of a spec that says whose job it is, in every format so far."""

    owner: User


# Made once, where the zygote is started: every supervisor shares them.
_decode_version = msgspec.json.Decoder(_Version).decode
_decode_owned = msgspec.json.Decoder(_Owned).decode
_decode_spec = msgspec.json.Decoder(JobSpec).decode
_decode_status = msgspec.json.Decoder(JobStatus).decode
_decode_shares = msgspec.json.Decoder(tuple[Share, ...]).decode


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @property
    def spec(self) -> Path:
        """What was asked for."""
        return self.path / "spec"

    @property
    def lock(self) -> Path:
        """Held for as long as somebody watches over the job."""
        return self.path / "lock"

    @property
    def control(self) -> Path:
        """The FIFO for orders."""
        return self.path / "control"

    @property
    def status(self) -> Path:
        """Where the job stands."""
        return self.path / "status"

    @property
    def reserve(self) -> Path:
        """Room for one more status."""
        return self.path / "reserve"

    @property
    def output(self) -> Path:
        """The bytes of both streams."""
        return self.path / "output"

    @property
    def index(self) -> Path:
        """What of the output is whose."""
        return self.path / "index"

    @property
    def fault(self) -> Path:
        """What went wrong inside the supervisor."""
        return self.path / "fault"

    @property
    def shares(self) -> Path:
        """Who besides the owner may do what with the job."""
        return self.path / "shares"

    @property
    def told(self) -> Path:
        """There when the job's end has been told."""
        return self.path / "told"

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Note that the job's end has been told, once that has been done within the context.

        No file is made for it, which a full disk could refuse: the pipe that takes orders is renamed.
        """
        if not self.control.exists():  # the supervisor vanished before it made one
            os.mkfifo(self.control, 0o600)
        yield
        os.rename(self.control, self.told)

    def write_spec(self, spec: JobSpec) -> None:
        """Write what was asked for."""
        _replace(self.spec, msgspec.json.encode(spec))

    def read_spec(self) -> JobSpec:
        """Read what was asked for.

        Raises:
            FileNotFoundError: there is no such job.
            SpoolCorrupt: it is not a spec, or one of a newer format.
        """
        data = self.spec.read_bytes()
        try:
            version = _decode_version(data).format
            if version > FORMAT_VERSION:
                raise FormatTooNew(self.spec, version)
            return _decode_spec(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SpoolCorrupt(self.spec, str(error)) from error

    def read_owner(self) -> User | None:
        """Read whose job it is, whatever else is damaged or too new.

        Returns:
            None when that cannot be read either.

        Raises:
            FileNotFoundError: there is no such job.
        """
        data = self.spec.read_bytes()
        try:
            return _decode_owned(data).owner
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def is_too_new(self) -> bool:
        """Tell whether a newer workerd made this job."""
        try:
            self.read_spec()
        except FormatTooNew:
            return True
        except (FileNotFoundError, SpoolCorrupt):
            return False
        return False

    def write_status(self, status: JobStatus, *, sync: bool = False) -> None:
        """Replace where the job stands, as a whole: a reader sees the old or the new one.

        Args:
            sync: whether to wait until it is on the disk, and with it every file's name in the folder.
        """
        data = msgspec.json.encode(status)
        try:
            _replace(self.status, data, sync=sync)
        except OSError as error:
            if not (is_no_room(error) and self.reserve.exists()):
                raise
            self.reserve.unlink()
            _replace(self.status, data, sync=sync)
            self.make_reserve()

    def make_reserve(self) -> None:
        """Set room aside, if there is any, so that a full disk does not keep a job's status from being told."""
        try:
            with open(self.reserve, "wb", opener=private) as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError as error:
            if not is_no_room(error):
                raise

    def read_status(self) -> JobStatus | None:
        """Read where the job stands.

        Returns:
            None when no supervisor has taken the job on yet: then nothing of it has been executed.

        Raises:
            SpoolCorrupt: it is not a status.
        """
        try:
            data = self.status.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _decode_status(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SpoolCorrupt(self.status, str(error)) from error

    def write_shares(self, shares: tuple[Share, ...]) -> None:
        """Replace who may do what, as a whole, and wait until that is on the disk: what was taken back stays so."""
        _replace(self.shares, msgspec.json.encode(shares), sync=True)

    def read_shares(self) -> tuple[Share, ...]:
        """Read who besides the owner may do what with the job.

        Raises:
            FileNotFoundError: there is no such job.
            SpoolCorrupt: it cannot be read off the file.
        """
        try:
            data = self.shares.read_bytes()
        except FileNotFoundError:
            self.spec.stat()
            return ()
        try:
            return _decode_shares(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SpoolCorrupt(self.shares, str(error)) from error

    @contextlib.contextmanager
    def wait_held(self) -> Iterator[None]:
        """Hold the folder, so that it is not taken away and nobody else changes `shares`. Blocks the thread.

        Raises:
            FileNotFoundError: it is not there, or was taken away meanwhile.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                raise FileNotFoundError(errno.ENOENT, "was removed and made again", str(self.path))
            yield
        finally:
            os.close(descriptor)

    def try_lock(self) -> int | None:
        """Take the job's lock to start it, if the lock is free.

        Returns:
            A descriptor that holds the lock until its last copy is closed, in whatever process (flock(2)); None when
            somebody else holds it. It is open for writing, so that inotify(7) tells of that close (IN_CLOSE_WRITE).

        Raises:
            FileNotFoundError: the folder is not there, or was removed meanwhile.
        """
        descriptor = _lock(self.lock, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            try:
                if not os.path.samestat(os.fstat(descriptor), os.stat(self.lock)):
                    raise FileNotFoundError(errno.ENOENT, "was removed and made again", str(self.path))
            except FileNotFoundError:
                os.close(descriptor)
                raise
        return descriptor

    def is_locked(self) -> bool:
        """Tell whether somebody watches over the job."""
        descriptor = _lock(self.lock, os.O_RDONLY, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    @contextlib.contextmanager
    def wait_lock(self) -> Iterator[None]:
        """Hold the job's lock to look after its folder, once it is free. Blocks the thread; nobody is told of it."""
        descriptor = _lock(self.lock, os.O_RDONLY, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def order_stop(self, order: StopOrder) -> bool:
        """Hand an order to the job's supervisor.

        Returns:
            False when no supervisor is there to take it.
        """
        try:
            descriptor = os.open(self.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):  # ENXIO: nobody has it open for reading (fifo(7))
                return False
            raise
        try:
            os.write(descriptor, msgspec.json.encode(order) + b"\n")  # atomic below PIPE_BUF (pipe(7))
        finally:
            os.close(descriptor)
        return True

    def read_fault(self) -> str:
        """Read what went wrong inside the supervisor; empty when nothing did."""
        try:
            return self.fault.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def report_fault(self, text: str) -> None:
        """Keep a note of something that went wrong inside the supervisor, for people."""
        with contextlib.suppress(OSError), open(self.fault, "a", encoding="utf-8", opener=private) as file:
            file.write(text)


def _lock(path: Path, flags: int, operation: int) -> int | None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def private(path: str, flags: int) -> int:
    """Open a file that nobody else may read, for `open`."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _replace(path: Path, data: bytes, *, sync: bool = False) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "wb", opener=private) as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.rename(new, path)
    if sync:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
