"""What all benchmarks share: how much they move, where, the peer's ssh, and the clock."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sizes import Sizes
from benchmarks.ssh import Ssh, SshUnavailable, running_sshd
from tests.daemon import Daemon, running_daemon
from workerd.engine import cgroup


@dataclass(slots=True)
class Spent:
    """What something took: set once it is over.

    Attributes:
        cpu_seconds: of this process and all that it started, ended ones included; None where the kernel does not tell.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float | None = None

    def per_second(self, amount: float) -> float:
        """Tell how much of something this makes in a second."""
        return amount / self.wall_seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """The place where benchmarks run.

    Attributes:
        folder: for whatever they write; on the file system that is to be measured.
        peer: the ssh that is compared with; why there is none where there is none.
        group: the cgroup that this process and all that it starts are in; None where it may not make one.
    """

    sizes: Sizes
    folder: Path
    peer: Ssh | SshUnavailable
    group: Path | None

    @property
    def ssh(self) -> Ssh:
        """The peer.

        Raises:
            SshUnavailable: there is none.
        """
        if isinstance(self.peer, SshUnavailable):
            raise self.peer
        return self.peer

    @contextlib.contextmanager
    def daemon(self, *options: str) -> Iterator[Daemon]:
        """Run a daemon of its own for a benchmark, with a state directory that is empty, and as fast as it can be."""
        with (
            tempfile.TemporaryDirectory(prefix="daemon-", dir=self.folder) as folder,
            running_daemon(Path(folder, "state"), "--max-spawns-per-second", "0", *options) as daemon,
        ):
            yield daemon

    @contextlib.contextmanager
    def timed(self) -> Iterator[Spent]:
        """Measure what is done within; what was written before is on the disk when it begins."""
        os.sync()
        spent = Spent()
        cpu, wall = self._cpu_seconds(), time.perf_counter()
        yield spent
        spent.wall_seconds = time.perf_counter() - wall
        after = self._cpu_seconds()
        if cpu is not None and after is not None:
            spent.cpu_seconds = after - cpu

    def _cpu_seconds(self) -> float | None:
        """Read the processor time of all that ever ran in the cgroup (cgroup-v2.rst, "cpu.stat": always there)."""
        if self.group is None:
            return None
        fields = dict(line.split() for line in (self.group / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6


@contextlib.contextmanager
def make_bench(sizes: Sizes, folder: Path) -> Iterator[Bench]:
    """Make the place, with sshd if there is one, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(_own_group())
        peer: Ssh | SshUnavailable
        try:
            peer = stack.enter_context(running_sshd(folder / "ssh"))
        except SshUnavailable as error:
            peer = error
        yield Bench(sizes, folder, peer, group)


@contextlib.contextmanager
def _own_group() -> Iterator[Path | None]:
    """Move this process into a cgroup of its own, if it may make one, for as long as the context lasts."""
    group = cgroup.create(f"benchmarks-{os.getpid()}")
    if group is None:
        yield None
        return
    cgroup.enter(group)
    try:
        yield group
    finally:
        cgroup.enter(group.parents[1])
        cgroup.remove(group)
