"""A job's folder: which file is what.

    journal   what was asked, each state since, and the end (`workerd.engine.journal`); the job's lock is held on it
    control   a FIFO on which the supervisor takes orders to stop; gone when the job has ended
    output    the bytes of both streams, interleaved as they came
    index     which bytes of `output` are whose (`workerd.engine.record`)
    shares    who besides the owner may do what with the job, replaced as a whole; absent until it is shared
    spec      format and owner, for earlier versions: one file for all jobs of an owner (`workerd.engine.identity`)

A job is locked, with flock(2), by its supervisor, by the daemon that is about to start one, or by the keeper when it
has gone. A free lock means that no process watches over the job. Unlike a process id a lock cannot be recycled.

The folder itself is locked, with flock(2) too, while `shares` is changed and while the folder is taken away.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from system.file_lock import lock_within
from workerd.engine.errors import FormatTooNew, NeverForced, SpoolCorrupt
from workerd.engine.files import DAMAGE, open_regular, read_whole, replacing
from workerd.engine.identity import Version, label_content
from workerd.engine.index import IndexFile
from workerd.engine.job import FORMAT_VERSION, JobSpec, JobStatus, Share, StopOrder, User
from workerd.engine.journal import Journal, JournalWriter, Specified, Told, goes_on, is_cut_off, parse, seal, unseal
from workerd.engine.old_format import NEWEST_OLD, mark_old_told, read_old, read_old_owner
from workerd.engine.record import CheckedCodec, Codec, OldCodec

_LOOKS = 20
HELD_SECONDS = 20.0  # how long to wait for another process that holds the folder
_LONGEST_JOURNAL = 64 << 20  # nothing that the kernel would execute takes as much
_SHARES = 2**63  # what their checksum has in the place of an offset in the journal
# Made once, where the zygote is started: every supervisor shares them.
_decode_version = msgspec.json.Decoder(Version).decode
_decode_shares = msgspec.json.Decoder(tuple[Share, ...]).decode


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The files of one job.

    Attributes:
        path: of the folder.
        name: the job's id, if the folder's name is another.
    """

    path: Path
    name: str = ""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.name or self.path.name

    @property
    def journal(self) -> Path:
        """What was asked for, and what became of it."""
        return self.path / "journal"

    @property
    def control(self) -> Path:
        """The FIFO for orders."""
        return self.path / "control"

    @property
    def output(self) -> Path:
        """The bytes of both streams."""
        return self.path / "output"

    @property
    def index(self) -> Path:
        """Which bytes of the output are whose."""
        return self.path / "index"

    @property
    def shares(self) -> Path:
        """Who besides the owner may do what with the job."""
        return self.path / "shares"

    @property
    def spec(self) -> Path:
        """Where every version can read the format."""
        return self.path / "spec"

    @property
    def is_old(self) -> bool:
        """Whether an earlier version made it, before there were journals."""
        if os.path.exists(self.journal):  # unlike Path.exists, False for what may not be looked at
            return False
        if (version := self._version()) is not None:
            return version <= NEWEST_OLD
        return any(os.path.exists(self.path / name) for name in ("lock", "status"))

    @property
    def lock(self) -> Path:
        """The file that is locked for as long as a process watches over the job."""
        return self.path / "lock" if self.is_old else self.journal

    def open_index(self, flags: int = os.O_RDONLY) -> IndexFile:
        """Open the index.

        Raises:
            FileNotFoundError: there is none.
            SpoolCorrupt: it is no regular file.
        """
        codec: Codec = OldCodec() if self.is_old else CheckedCodec(self.job_id)
        return IndexFile(self.index, codec, flags)

    def create(self, spec: JobSpec, spool: str, label: Path) -> int:
        """Make the folder, with its lock held.

        Args:
            spec: what was asked for.
            spool: the state directory's id.
            label: the file that becomes `spec`.

        Returns:
            A descriptor of the journal, which holds the lock until its last copy is closed, in whatever process.
        """
        self.path.mkdir(mode=0o700)
        lock = os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            JournalWriter(lock, self.job_id, 0).append(Specified(spool, spec))
            try:
                os.link(label, self.spec)
            except OSError:  # a file has only so many links, 65,000 on ext4
                with replacing(self.spec) as file:
                    file.write(label_content(spec.owner))
        except BaseException:
            os.close(lock)
            raise
        return lock

    def read(self) -> Journal:
        """Read what was asked for and what became of it.

        Raises:
            FileNotFoundError: there is no such job.
            FormatTooNew: a newer workerd made it.
            NeverForced: a power cut took what was asked for, before any client was told of the job.
            SpoolCorrupt: it is damaged.
        """
        looks, data, journal = 0, None, Journal()
        while True:
            before = data
            try:
                data = read_whole(self.journal, _LONGEST_JOURNAL)
            except FileNotFoundError:
                if self.is_old:
                    return read_old(self.path)
                self.path.stat()
                self._refuse_newer()
                raise SpoolCorrupt(self.journal, "it is missing") from None
            if data != before:
                journal = parse(data, self.job_id)
            looks += 1
            is_whole = journal.spec is not None and not journal.rest
            if is_whole or looks == _LOOKS:  # what does not check may be a record that is being written
                break
        journal.is_broken = journal.rest > 0 and goes_on(data, self.job_id, journal.size)
        if journal.spec is None:
            self._refuse_newer()
            if not journal.is_broken and is_cut_off(data):
                raise NeverForced(self.journal)
            raise SpoolCorrupt(self.journal, "its first record does not check")
        return journal

    def read_spec(self) -> JobSpec:
        """Read what was asked for, as `read` does."""
        spec = self.read().spec
        if spec is None:
            raise AssertionError("a journal was read without its first record")
        return spec

    def read_status(self) -> JobStatus | None:
        """Read where the job stands, as `read` does.

        Returns:
            None when no supervisor has taken the job on yet: then nothing of it has been executed.
        """
        return self.read().status

    def read_owner(self) -> User | None:
        """Read whose job it is, whatever else is damaged.

        Returns:
            None when that cannot be read either.

        Raises:
            FileNotFoundError: there is no such job.
        """
        try:
            return self.read_spec().owner
        except SpoolCorrupt:
            return read_old_owner(self.path)

    @contextlib.contextmanager
    def telling(self, lock: int, journal: Journal) -> Iterator[None]:
        """Note that the job's end has been told, once that has been done within the context.

        Room for the note is made sure of first: a full disk must not have the end told over and over.

        Args:
            lock: as `try_lock` returns it.
            journal: the job's, as it stands.
        """
        if self.is_old:
            yield
            mark_old_told(self.path)
        else:
            writer = JournalWriter(lock, self.job_id, journal.size)
            writer.keep_room_to_tell()
            yield
            writer.append(Told())

    def write_shares(self, shares: tuple[Share, ...]) -> None:
        """Replace who may do what, as a whole, and wait until that is on the disk: what was taken back stays so."""
        data = msgspec.json.encode(shares)
        with replacing(self.shares) as file:
            file.write(data if self.is_old else seal(data, self.job_id, _SHARES))

    def read_shares(self) -> tuple[Share, ...]:
        """Read who besides the owner may do what with the job.

        Raises:
            FileNotFoundError: there is no such job.
            SpoolCorrupt: it cannot be read off the file.
        """
        try:
            data = read_whole(self.shares)
        except FileNotFoundError:
            self.path.stat()
            return ()
        if not self.is_old:
            checked = unseal(data, self.job_id, _SHARES)
            if checked is None:
                raise SpoolCorrupt(self.shares, "it does not check")
            data = checked
        try:
            return _decode_shares(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise SpoolCorrupt(self.shares, str(error)) from error

    @contextlib.contextmanager
    def wait_held(self, seconds: float) -> Iterator[None]:
        """Hold the folder, so that it is not taken away and no other process changes `shares`. Blocks the thread.

        Args:
            seconds: how long to wait at most.

        Raises:
            FileNotFoundError: it is not there, or was taken away while it was waited for.
            LockHeld: another process holds it for longer.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock_within(descriptor, self.path, seconds)
            if not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                raise FileNotFoundError(errno.ENOENT, "was removed and made again", str(self.path))
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def requiring_files(self) -> Iterator[None]:
        """Take a file that is missing for damage, unless the folder is missing.

        Raises:
            FileNotFoundError: the folder is missing.
            SpoolCorrupt: the file is missing.
        """
        try:
            yield
        except FileNotFoundError as error:
            self.path.stat()
            raise SpoolCorrupt(Path(error.filename), "it is missing") from None

    def try_lock(self) -> int | None:
        """Take the job's lock, if it is free.

        Returns:
            A descriptor that holds the lock until its last copy is closed, in whatever process (flock(2)); None when
            another holds it. It is open for writing, so that inotify(7) tells of that close (IN_CLOSE_WRITE).

        Raises:
            FileNotFoundError: the folder is not there any more.
            SpoolCorrupt: the file to lock is missing, or no regular file.
        """
        path = self.lock
        with self.requiring_files():
            descriptor = _lock(path, os.O_RDWR | (os.O_CREAT if self.is_old else 0))
        if descriptor is not None:
            try:
                if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    raise FileNotFoundError(errno.ENOENT, "was removed and made again", str(self.path))
            except FileNotFoundError:
                os.close(descriptor)
                raise
        return descriptor

    def is_locked(self) -> bool:
        """Return whether a process watches over the job."""
        try:
            descriptor = _lock(self.lock, os.O_RDONLY)
        except (FileNotFoundError, SpoolCorrupt):
            return False
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def is_watched(self) -> bool:
        """Return whether a process watches over the job, even if the file with its lock was replaced."""
        return self.is_locked() or self.has_supervisor()

    def has_supervisor(self) -> bool:
        """Return whether a supervisor takes orders for the job."""
        try:
            descriptor = self._open_control()
        except (OSError, SpoolCorrupt):
            return False
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def order_stop(self, order: StopOrder) -> bool:
        """Hand an order to the job's supervisor.

        Returns:
            False when no supervisor is there to take it.

        Raises:
            SpoolCorrupt: what it takes orders from is no FIFO.
        """
        descriptor = self._open_control()
        if descriptor is None:
            return False
        try:
            # BlockingIOError: the pipe is full of orders, which a stopped supervisor takes when it is continued.
            with contextlib.suppress(BlockingIOError):
                os.write(descriptor, msgspec.json.encode(order) + b"\n")  # atomic below PIPE_BUF (pipe(7))
        finally:
            os.close(descriptor)
        return True

    def _open_control(self) -> int | None:
        """Open the FIFO for orders; return None when nobody reads it."""
        try:
            descriptor = os.open(self.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):  # ENXIO: nobody has it open for reading (fifo(7))
                return None
            if error.errno in DAMAGE:
                raise SpoolCorrupt(self.control, str(error.strerror)) from error
            raise
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SpoolCorrupt(self.control, "it is no FIFO")
        return descriptor

    def read_fault(self) -> str:
        """Read what went wrong inside the supervisor; empty when nothing did."""
        try:
            return "".join(self.read().faults)
        except (FileNotFoundError, SpoolCorrupt):
            return ""

    def _refuse_newer(self) -> None:
        if (version := self._version()) is not None and version > FORMAT_VERSION:
            raise FormatTooNew(self.spec, version)

    def _version(self) -> int | None:
        """Read the format off the file that every version has; return None where that cannot be read."""
        try:
            return _decode_version(read_whole(self.spec)).format
        except (FileNotFoundError, SpoolCorrupt, msgspec.MsgspecError, UnicodeDecodeError):
            return None


def _lock(path: Path, flags: int) -> int | None:
    descriptor = open_regular(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor
