"""A real daemon for tests: its own process, certificates, state directory and free port, and clients of it."""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pki.store import PkiFolder
from tests.commands import run_workerctl
from tests.waiting import wait_unlocked
from workerctl.client import Client
from workerctl.target import Target
from workerd.access.recorder import Record
from workerd.engine.engine import Engine
from workerd.engine.folder import JobFolder
from workerd.engine.job import StopOrder, User
from workerd.engine.journal import Ended, JournalWriter, Told
from workerd.engine.record import CheckedCodec
from workerd.listening import listen
from workerd.registry import load_routes
from workerd.server import answering
from workerd.settings import Settings

USER = "acrimon"
_SECOND_NS = 10**9
# Tests look into /proc, where a daemon otherwise shows nothing to anybody but root.
_DEBUGGABLE = {} if os.geteuid() == 0 else {"WORKERD_DEBUGGABLE": "true"}


@dataclass
class Daemon:
    """A `workerd` that can be ended and started again over the same state.

    Attributes:
        prefix: a command that runs the daemon as its argument and becomes it, such as prlimit(1).
        endpoint: `https://localhost:PORT` of the one that runs.
        certificates: where its clients find theirs, if not in its own folder, which may be another account's.
    """

    state: Path
    options: tuple[str, ...] = ()
    listen: str = "127.0.0.1:0"
    prefix: tuple[str, ...] = ()
    endpoint: str = ""
    process: subprocess.Popen[bytes] | None = None
    certificates: Path | None = None
    _errors: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        self._errors = self.state / "stderr"
        if not self.pki.is_initialized():
            self.pki.initialize()
            self.pki.issue_client(USER)

    @property
    def pki(self) -> PkiFolder:
        return PkiFolder(self.state / "pki")

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @property
    def pid(self) -> int:
        if self.process is None:
            raise AssertionError("the daemon does not run")
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it says that it serves."""
        with self._errors.open("ab") as errors:
            options = ("--listen", self.listen, "--state-dir", str(self.state), *self.options)
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "workerd", *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **_DEBUGGABLE},
            )
        assert self.process.stdout is not None
        with self.process.stdout as said:
            line = said.readline().decode()
        if not line.startswith("serving gRPC endpoint at 127.0.0.1:"):
            code = self.stop()
            raise AssertionError(f"the daemon did not start and ended with {code}: {line}{self.errors()}")
        self.endpoint = f"https://localhost:{line.rpartition(':')[2].strip()}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        self.process = None
        return code

    def errors(self) -> str:
        """What it has said on standard error."""
        return self._errors.read_text()

    def target(self, user: str = USER, endpoint: str | None = None) -> Target:
        """The daemon as a user sees it, through an endpoint that leads there if it is not its own."""
        return Target(endpoint or self.endpoint, user, self.certificates or self.pki.path)

    def client(self, user: str = USER) -> Client:
        return Client(self.target(user))

    def command(self, *arguments: str, user: str = USER, endpoint: str | None = None) -> list[str]:
        """The command line of a workerctl that talks to this daemon."""
        return [sys.executable, "-m", "workerctl", *self.options_of(user, endpoint), *arguments]

    def options_of(self, user: str, endpoint: str | None = None) -> tuple[str, ...]:
        """Return the options of a workerctl that talks to this daemon."""
        pki = str(self.certificates or self.pki.path)
        return ("--endpoint", endpoint or self.endpoint, "--username", user, "--pki-dir", pki)

    def workerctl(
        self, *arguments: str, user: str = USER, endpoint: str | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run workerctl against this daemon."""
        return run_workerctl(*self.options_of(user, endpoint), *arguments)

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.state / "jobs" / job_id)

    def close(self) -> None:
        """End the daemon and every job that it left, each by its own control pipe."""
        if self.process is not None:
            self.stop()
        end_jobs(self.state)


def end_jobs(state: Path) -> None:
    """Kill the jobs below a state directory and wait until their supervisors have gone."""
    for path in (state / "jobs").glob("*"):
        folder = JobFolder(path)
        folder.order_stop(StopOrder(User("00000000-0000-0000-0000-000000000000", "the tests"), 0.0))
        with contextlib.suppress(FileNotFoundError):
            wait_unlocked(folder)


def multiply(model: JobFolder, count: int) -> None:
    """Make copies of an ended job, each with an id and a time of its own."""
    journal = model.read()
    assert journal.spec is not None and journal.status is not None
    output = model.output.read_bytes()
    with model.open_index() as index:
        records = [*index.records(0)]
    for number in range(1, count + 1):
        copy = JobFolder(model.path.with_name(str(uuid.uuid4())))
        created_ns = journal.spec.created_ns - number * _SECOND_NS
        spec = msgspec.structs.replace(journal.spec, id=copy.job_id, created_ns=created_ns)
        lock = copy.create(spec, journal.spool, model.spec)
        writer = JournalWriter(lock, copy.job_id, copy.journal.stat().st_size)
        writer.append(Ended(journal.status))
        if journal.is_told:
            writer.append(Told())
        os.close(lock)
        copy.output.write_bytes(output)
        codec = CheckedCodec(copy.job_id)
        header = msgspec.structs.replace(records[0], length=codec.tie)
        copy.index.write_bytes(b"".join(codec.pack(n, each) for n, each in enumerate([header, *records[1:]])))


@contextlib.contextmanager
def running_daemon(state: Path, *options: str, prefix: tuple[str, ...] = ()) -> Iterator[Daemon]:
    """Run a daemon for as long as the context lasts."""
    daemon = Daemon(state, options, prefix=prefix)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def _forget(event: Mapping[str, Any], *, urgent: bool = False) -> None:
    """Write no audit trail."""


@contextlib.asynccontextmanager
async def daemon_in_this_process(state: Path, record: Record = _forget) -> AsyncIterator[Target]:
    """Serve as the daemon does, within the loop of the test, where its tasks can be counted and faults be made.

    Args:
        record: writes the audit trail.
    """
    settings = Settings("127.0.0.1", 0, state, state / "pki", state / "policies")
    PkiFolder(settings.pki_directory).initialize(users=[USER])
    try:
        async with Engine(state) as engine:
            with listen(settings) as listening:
                async with answering(engine, settings, load_routes(), listening, record):
                    yield Target(f"https://localhost:{listening.getsockname()[1]}", USER, settings.pki_directory)
    finally:
        end_jobs(state)
