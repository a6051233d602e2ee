"""What things cost, counted and not timed: frames, system calls, imports.

Beside each bound stands today's figure, which is more than half of it. Times and peers are for `nox -s bench`.
"""

import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.connection import H2Connection
from worker_api.worker.v1 import JobEnd, SpawnRequest

from tests.conftest import PROGRAMS
from tests.daemon import Daemon, running_daemon
from workerctl.client import Client
from workerctl.events import Output
from workerd.engine.record import RECORD_SIZE

MEGABYTES = 64
STORED = MEGABYTES << 20
LINES = 4_000
# What a client that shows one job has no use for, and what takes long to import.
UNUSED = {
    "cryptography",
    "rich",
    "structlog",
    "sqlite3",
    "workerd",
    "hypothesis",
    "google.protobuf.message",
    "json.tool",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state") as daemon:
        yield daemon


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many frames of each kind this process receives."""
    counted: Counter[str] = Counter()
    receive = H2Connection._receive_frame

    def count(self: H2Connection, frame: object) -> object:
        counted[type(frame).__name__] += 1
        return receive(self, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(H2Connection, "_receive_frame", count)
    return counted


def calls_of(pid: int) -> Counter[str]:
    """How many calls a process has made that read and that wrote (proc_pid_io(5)), and how many bytes they moved."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return Counter({name: int(value) for name, _, value in (line.partition(": ") for line in lines)})


async def collect(client: Client, job_id: str) -> list[Output | JobEnd]:
    return [event async for event in client.stream_log(job_id) if isinstance(event, Output | JobEnd)]


async def test_a_stored_log_goes_in_few_frames_and_calls(daemon: Daemon, frames: Counter[str]) -> None:
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="head", args=["-c", str(STORED), "/dev/zero"]))
        await collect(client, job_id)
        frames.clear()
        before = calls_of(daemon.pid)
        events = await collect(client, job_id)
        spent = calls_of(daemon.pid) - before
    assert sum(len(event.data) for event in events if isinstance(event, Output)) == STORED
    assert len(events) / MEGABYTES < 8  # 4
    assert frames["DataFrame"] / MEGABYTES < 8  # 4
    assert spent["syscr"] / MEGABYTES < 32  # 17
    assert spent["rchar"] < 1.5 * STORED  # read once, and what the index takes


async def test_lines_of_two_streams_in_turn_share_frames(daemon: Daemon, frames: Counter[str]) -> None:
    async with daemon.client() as client:
        program = str(PROGRAMS / "alternate.py")
        job_id = await client.spawn(SpawnRequest(program=sys.executable, args=[program, str(LINES)]))
        await collect(client, job_id)
        records = daemon.folder(job_id).index.stat().st_size // RECORD_SIZE
        frames.clear()
        events = await collect(client, job_id)
    assert records > LINES
    assert len(events) == LINES + 1
    assert frames["DataFrame"] < 10  # 5: the reader looks at 1024 records at a time


async def test_a_supervisor_reads_and_writes_once_what_it_captures(daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    subprocess.run(["mkfifo", gate], check=True)
    script = f"head -c {STORED} /dev/zero; cat {gate}"
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", script]))
        stream = client.stream_log(job_id)
        size = 0
        async for event in stream:
            assert isinstance(event, Output)
            size += len(event.data)
            if size == STORED:
                break
        await stream.aclose()
        pid = (await client.status(job_id)).pid
        supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        spent = calls_of(supervisor)
        gate.write_text("")
        await collect(client, job_id)
    assert spent["rchar"] < 1.2 * STORED
    assert spent["wchar"] < 1.2 * STORED
    assert (
        spent["syscr"] + spent["syscw"]
    ) / MEGABYTES < 500  # 12 to 384: head writes 8 KiB at a time, and the supervisor may be as fast


def test_a_reader_takes_its_memory_once(daemon: Daemon) -> None:
    """Not for every message anew: what the kernel has to do then is told in page faults (getrusage(2))."""

    def faults(*arguments: str) -> int:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
        subprocess.run(daemon.command(*arguments), stdout=subprocess.DEVNULL, check=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before

    program = ("head", "-c", str(STORED), "/dev/zero")
    job_id = daemon.workerctl("spawn", "--", *program).stdout.decode().strip()
    assert faults("stream-log", "--past-events", "--uuid", job_id) >= 0  # to its end
    before = faults("stream-log", "--last-bytes", "0", "--uuid", job_id)
    after = faults("stream-log", "--past-events", "--uuid", job_id)
    assert (after - before) / MEGABYTES < 150  # 56 to 76; 187 to 280 when malloc gives it back


def test_a_short_command_imports_little(daemon: Daemon) -> None:
    job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
    _, module, *arguments = daemon.command("status", "--uuid", job_id)[1:]
    script = "import sys; from workerctl.app import main_with; code = main_with(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=True, text=True)
    assert module == "workerctl"
    modules = set(done.stdout.splitlines()[-1].split())
    assert "workerctl.commands.status" in modules
    assert modules & UNUSED == set()
    assert len(modules) < 600  # 378
