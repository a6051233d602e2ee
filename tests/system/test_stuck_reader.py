"""A reader that stops reading costs neither the job its time nor the daemon its memory, and gets everything later.

`nox -s soak` runs it with two gigabytes and a whole minute: WORKERD_STUCK_BYTES and WORKERD_STUCK_SECONDS say how much.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash

from tests.daemon import Daemon
from workerd.engine.job import JobStatus
from workerd.engine.tree import parent_of

SIZE = int(os.environ.get("WORKERD_STUCK_BYTES", "300_000_000"))
SECONDS = float(os.environ.get("WORKERD_STUCK_SECONDS", "2"))
MAX_GROWTH_BYTES = 12_000_000
MAX_RATIO = 3.0
# Every byte differs from what lies a piece of any size that a buffer may have before it.
PROGRAM = f"""
import os, sys
block, left = os.urandom(1_000_003), {SIZE}
sys.stdin = open({{gate!r}})
sys.stdin.read(1)
while left:
    left -= os.write(1, block[:left])
"""


@dataclass
class Memory:
    """The most that a process has had in use since the watching began, and what it had then, in bytes."""

    pid: int

    def __post_init__(self) -> None:
        self.first = self.most = self._look()

    def look(self) -> None:
        self.most = {name: max(value, self.most[name]) for name, value in self._look().items()}

    def grown(self) -> int:
        return max(self.most[name] - self.first[name] for name in self.first)

    def _look(self) -> dict[str, int]:
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]  # proc_pid_smaps(5)
        fields = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}
        return {"RSS": fields["Rss:"], "PSS": fields["Pss:"]}

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {self.first[name] / 1e6:.1f} to {self.most[name] / 1e6:.1f} MB" for name in self.first
        )


class Printer:
    """A job that waits to be let go and then prints much as fast as it can."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        self.daemon = daemon
        program = PROGRAM.format(gate=str(self._gate))
        spawned = daemon.workerctl("spawn", "--", "python3", "-c", program)
        assert spawned.returncode == 0, spawned.stderr
        self.job_id = spawned.stdout.decode().strip()

    def status(self) -> JobStatus:
        status = self.daemon.folder(self.job_id).read_status()
        assert status is not None
        return status

    def run(self, *watched: Memory) -> float:
        """Let it print, watch meanwhile, and return how many seconds it took."""
        os.sync()  # what was written before must not slow down what comes
        self._gate.write_text("go")
        while (end := self.status().end) is None:
            for memory in watched:
                memory.look()
            time.sleep(0.05)
        assert end.stdout.size_bytes == SIZE
        started = self._gate.stat().st_mtime_ns  # when it was let go
        return (end.ended_ns - started) / 1e9


@contextlib.contextmanager
def stopped_reader(daemon: Daemon, job_id: str, received: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A workerctl that has begun to follow a job and is then stopped, as by Ctrl-Z; it goes on at the end."""
    with received.open("wb") as stdout:
        reader = subprocess.Popen(daemon.command("stream-log", "--past-events", "--uuid", job_id), stdout=stdout)
    try:
        yield reader
    finally:
        reader.kill()
        reader.wait()


def digest_of_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@pytest.mark.timeout(120 + SIZE / 5e6 + 2 * SECONDS)
def test_a_reader_that_stops_reading_holds_up_nothing_and_gets_everything_later(daemon: Daemon, tmp_path: Path) -> None:
    alone_folder, read_folder, received = tmp_path / "alone", tmp_path / "read", tmp_path / "received"
    alone_folder.mkdir()
    read_folder.mkdir()
    try:
        alone = Printer(daemon, alone_folder).run()
        job = Printer(daemon, read_folder)
        supervisor = parent_of(job.status().pid)
        assert supervisor is not None
        with stopped_reader(daemon, job.job_id, received) as reader:
            wait_until_follows(daemon, job)
            reader.send_signal(signal.SIGSTOP)
            in_daemon, in_supervisor = Memory(daemon.pid), Memory(supervisor)
            with_reader = job.run(in_daemon, in_supervisor)
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                in_daemon.look()
                time.sleep(0.1)
            print(
                f"{SIZE / 1e6:.0f} MB, reader stopped for {SECONDS} s after them: daemon {in_daemon}; supervisor"
                f" {in_supervisor}; {with_reader:.2f} s, without a reader {alone:.2f} s: {with_reader / alone:.2f}"
            )
            assert in_daemon.grown() < MAX_GROWTH_BYTES
            assert in_supervisor.grown() < MAX_GROWTH_BYTES
            assert with_reader < MAX_RATIO * alone + 1
            assert received.stat().st_size < SIZE
            reader.send_signal(signal.SIGCONT)
            assert reader.wait(timeout=60 + SIZE / 5e6) == 0
        end = job.status().end
        assert end is not None
        assert received.stat().st_size == SIZE
        assert digest_of_file(received) == end.stdout.xxh3_128
        in_daemon.look()
        print(f"after it got everything: daemon {in_daemon}")
        assert in_daemon.grown() < MAX_GROWTH_BYTES
    finally:
        received.unlink(missing_ok=True)
        for path in (daemon.state / "jobs").iterdir():
            daemon.folder(path.name).output.unlink(missing_ok=True)


def wait_until_follows(daemon: Daemon, job: Printer) -> None:
    """Wait until the daemon has the job's output open."""
    output = str(daemon.folder(job.job_id).output)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for descriptor in Path(f"/proc/{daemon.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(descriptor) == output:
                    return
        time.sleep(0.02)
    raise AssertionError("the daemon does not read the log")
