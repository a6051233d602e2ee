"""The seeded plan of a run: which file is damaged how, and which mutations share a copy of the scene."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests.damage.files import Victim
from tests.damage.mutations import Operation

RUNNING = tuple(f"running-{number}" for number in range(4))
"""The labels of jobs that run in a copy while it is damaged; the last is left alone."""
_PER_COPY = 12
_SWAPS = 0.15
_SHARES = {"running": 0.07, "catalog": 0.08, "audit": 0.08, "state": 0.04}
"""How much of a run concerns what besides the files of ended jobs."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """Damage to one file, or to two that are swapped.

    Attributes:
        operations: in order of preference; the first that changes anything about the file is done.
        other: the file to swap it with; None where there is no other of its kind.
    """

    number: int
    operations: tuple[Operation, ...]
    victim: Victim
    other: Victim | None = None

    @property
    def jobs(self) -> set[str]:
        """The labels of the jobs that are damaged, by any of the operations."""
        return {victim.job for victim in (self.victim, self.other) if victim is not None and victim.job}


@dataclass(frozen=True, slots=True)
class Batch:
    """Mutations of one copy, and what surrounds them.

    Attributes:
        area: what all of them damage.
        has_daemon: whether a daemon serves the copy, instead of an engine in this process.
        keeps_catalog: whether the copy keeps the catalogue, instead of beginning with none.
        reopens: whether the copy is opened a second time.
        runs: whether jobs run while the files are damaged.
        settles: whether an engine has been on the copy and ended, before anything is damaged.
        is_alone: whether the one mutation may concern all jobs.
    """

    area: str
    mutations: tuple[Mutation, ...]
    has_daemon: bool = False
    keeps_catalog: bool = True
    reopens: bool = False
    runs: bool = False
    settles: bool = False
    is_alone: bool = False


def make_plan(seed: int, count: int, victims: Sequence[Victim]) -> list[Batch]:
    """Make the plan of a run.

    Args:
        count: how many mutations there are.
        victims: every file of the scene.
    """
    random = Random(f"plan {seed}")
    counts = {area: max(1, round(count * share)) for area, share in _SHARES.items()}
    counts["jobs"] = count - sum(counts.values())
    batches: list[Batch] = []
    number = 0
    for area in ("jobs", "running", "catalog", "audit", "state"):
        numbers = iter(range(number, number + counts[area]))
        number += counts[area]
        if area == "running":
            batches += _running(numbers, random)
        elif area == "jobs":
            batches += _of_jobs(numbers, [victim for victim in victims if victim.area == area], random)
        else:
            batches += _of_state(numbers, [victim for victim in victims if victim.area == area], random)
    return batches


def _of_jobs(numbers: Iterator[int], victims: Sequence[Victim], random: Random) -> Iterator[Batch]:
    kinds = _by_kind(victims)
    cycle = _cycle(kinds, random)
    pending: list[Mutation] = []
    used: set[str] = set()
    for number in numbers:
        kind = next(cycle)
        if all(victim.is_linked for victim in kinds[kind]):
            mutation = Mutation(number, _operations(random), random.choice(kinds[kind]))
            yield Batch("jobs", (mutation,), is_alone=True)
            continue
        free = [victim for victim in kinds[kind] if victim.job not in used]
        if pending and (len(free) < 2 or len(pending) == _PER_COPY):
            yield _surrounded(pending, random)
            pending, used, free = [], set(), kinds[kind]
        chosen = random.sample(free, min(2, len(free)))
        operations = _without_swap(_operations(random))
        if len(chosen) == 2 and random.random() < _SWAPS:
            mutation = Mutation(number, (Operation.SWAP_FILES, *operations), *chosen)
        else:
            mutation = Mutation(number, operations, chosen[0])
        pending.append(mutation)
        used |= mutation.jobs
    if pending:
        yield _surrounded(pending, random)


def _surrounded(mutations: Sequence[Mutation], random: Random) -> Batch:
    return Batch(
        "jobs",
        tuple(mutations),
        has_daemon=random.random() < 0.1,
        keeps_catalog=random.random() < 0.6,
        reopens=random.random() < 0.25,
    )


def _running(numbers: Iterator[int], random: Random) -> Iterator[Batch]:
    """Plan damage to running jobs; which of their files is drawn when the files are there."""
    while several := list(itertools.islice(numbers, len(RUNNING) - 1)):
        mutations = [
            Mutation(number, _without_swap(_operations(random)), Victim("jobs", label, ""))
            for number, label in zip(several, RUNNING, strict=False)
        ]
        yield Batch("jobs", tuple(mutations), reopens=random.random() < 0.5, runs=True)


def _of_state(numbers: Iterator[int], victims: Sequence[Victim], random: Random) -> Iterator[Batch]:
    kinds = _by_kind(victims)
    cycle = _cycle(kinds, random)
    for number in numbers:
        victim = random.choice(kinds[next(cycle)])
        settles = victim.area == "catalog" and random.random() < 0.5
        if settles:  # which files there are then is seen then
            victim = Victim(victim.area, "", "")
        mutation = Mutation(number, _without_swap(_operations(random)), victim)
        has_daemon = random.random() < 0.1
        yield Batch(victim.area, (mutation,), has_daemon=has_daemon, settles=settles, is_alone=victim.area == "state")


def _by_kind(victims: Sequence[Victim]) -> dict[str, list[Victim]]:
    kinds: dict[str, list[Victim]] = defaultdict(list)
    for victim in victims:
        kinds[victim.kind].append(victim)
    return dict(kinds)


def _cycle(kinds: dict[str, list[Victim]], random: Random) -> Iterator[str]:
    """Return kinds for ever; those without any content come less often, for there is little to damage."""
    often = [kind for kind, victims in kinds.items() if any(victim.size for victim in victims)] * 4
    seldom = [kind for kind in kinds if kind not in often]
    while True:
        round_of_all = often + seldom
        random.shuffle(round_of_all)
        yield from round_of_all


def _operations(random: Random) -> tuple[Operation, ...]:
    return tuple(random.sample([*Operation], len(Operation)))


def _without_swap(operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    return tuple(operation for operation in operations if operation is not Operation.SWAP_FILES)
