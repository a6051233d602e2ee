"""What the kernel tells of processes that run."""

from collections.abc import Iterable
from pathlib import Path

_KIB = 1024


def cpu_seconds_of(pid: int) -> float:
    """Tell the processor time of a process's threads that live, to the nanosecond (sched-stats.rst)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def memory_bytes(pid: int, fields: Iterable[str]) -> int:
    """Add up fields of a process's memory (proc_pid_smaps(5), smaps_rollup), such as `Pss`."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) * _KIB for name, _, rest in (line.partition(":") for line in lines)}
    return sum(sizes[field] for field in fields)


def own_memory_bytes(pid: int) -> int:
    """Tell how much memory a process shares with no other."""
    return memory_bytes(pid, ("Private_Clean", "Private_Dirty"))
