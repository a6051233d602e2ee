"""The checks of one copy: each compares what a face tells with the truth and notes what is neither true nor damage."""

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from random import Random

from tests.damage.faces import BOTH, DamageReported, End, Face, Hole, Missing, Piece, Row, has_ended
from tests.damage.truth import Truth
from tests.damage.violations import Findings, Rule, difference
from workerctl.exit_codes import ExitCode
from workerd.engine.errors import InvalidArgument
from workerd.engine.job import Stream, User

_RANDOM_READS = 4
_LOOK_SECONDS = 0.05


class Checker:
    """Checks one face of one copy.

    Args:
        truths: of all jobs in the copy, by label.
        damaged: the labels of those that were damaged.
        keeps_owners: whether the owners of damaged jobs are still known from the catalogue.
    """

    def __init__(
        self,
        face: Face,
        truths: Mapping[str, Truth],
        damaged: Collection[str],
        findings: Findings,
        *,
        keeps_owners: bool,
    ) -> None:
        self._face = face
        self._truths = truths
        self._damaged = damaged
        self._found = findings
        self._keeps_owners = keeps_owners

    async def check_lists(self, gone: Collection[str] = ()) -> None:
        """Check that every job is in the list of all and in that of its owner, once, with true values.

        Args:
            gone: the labels of the jobs that were removed, and must not be there.
        """
        found = self._found
        async with found.limited("", "the list of all"):
            rows = await self._settled_rows(None)
            self._check_rows(rows, [truth for truth in self._truths.values() if truth.label not in gone])
            for name in sorted({truth.owner.name for truth in self._truths.values()}):
                all_own = [truth for truth in self._truths.values() if truth.owner.name == name]
                own = [truth for truth in all_own if truth.label not in gone]
                known = {row.id for row in rows if row.owner} if not self._keeps_owners else {t.id for t in own}
                listed = await self._settled_rows(all_own[0].owner)
                self._check_rows(listed, [truth for truth in own if truth.id in known], f"the list of {name}")

    async def _settled_rows(self, owner: User | None) -> list[Row]:
        """List until no damaged job that has ended counts as one whose end is about to be told."""
        ended = {truth.id for truth in self._truths.values() if self._is_damaged_end(truth)}
        while True:
            rows = await self._face.rows(owner)
            if all(has_ended(row.value) for row in rows if row.id in ended):
                return rows
            await asyncio.sleep(_LOOK_SECONDS)

    def _check_rows(self, rows: list[Row], expected: Collection[Truth], where: str = "the list of all") -> None:
        by_id = {row.id: row for row in rows}
        if len(by_id) != len(rows):
            self._found.add(Rule.LISTED, "", f"{where} has a job twice")
        for truth in expected:
            self._found.checks += 1
            rule = Rule.LISTED if truth.label in self._damaged else Rule.NEIGHBOURS
            row = by_id.pop(truth.id, None)
            if row is None:
                self._found.add(rule, truth.label, f"{where} lacks it")
            elif row.value is None and truth.label not in self._damaged:
                self._found.add(rule, truth.label, f"{where} has it as damaged: {row.problem}")
            elif row.value is None and not row.problem:
                self._found.add(rule, truth.label, f"{where} has it as damaged and does not say how")
            elif row.owner not in ("", truth.owner.id):
                self._found.add(rule, truth.label, f"{where} has it as of {row.owner}")
            elif row.value is not None and not self._is_true(truth, row.value, truth.row):
                self._found.add(rule, truth.label, f"{where} has it {difference(row.value, truth.row)}")
        for job_id in by_id:
            self._found.add(Rule.LISTED, "", f"{where} has a job {job_id} that should not be there")

    async def check_job(self, truth: Truth, random: Random, *, runs: bool = False) -> None:
        """Check status, rights and log of one job, damaged or not.

        Args:
            random: draws where to read from.
            runs: whether the job has not ended, so that there is no end to be waited for.
        """
        await self.check_status(truth)
        async with self._limited(truth, "rights"):
            if gained := await self._face.rights(truth.id, truth.owner) - truth.rights:
                users = {other.owner.id for other in self._truths.values()}
                known = {right for other in self._truths.values() for _, right in other.rights}
                if any(user in users and right in known for user, right in gained):
                    self._found.add(Rule.RIGHTS, truth.label, f"it is shared with {sorted(gained)}")
        reads = [self.check_read(truth, 0, follow=not runs)]
        if truth.label in self._damaged:
            size = truth.log.size
            reads.append(self.check_read(truth, 0, follow=False))
            for number in range(_RANDOM_READS):
                streams = BOTH if number else frozenset({random.choice([*Stream])})
                offset = random.choice((size, max(0, size - 1), random.randint(0, size), random.randint(0, size)))
                reads.append(self.check_read(truth, offset, streams, follow=not runs and number % 2 == 1))
        await asyncio.gather(*reads)

    async def check_status(self, truth: Truth) -> None:
        """Check that the status is true, or says that the job is damaged."""
        async with self._limited(truth, "status"):
            status = await self._face.status(truth.id, truth.owner)
            while self._is_damaged_end(truth) and not has_ended(status):  # its end is about to be told
                await asyncio.sleep(_LOOK_SECONDS)
                status = await self._face.status(truth.id, truth.owner)
            if not self._is_true(truth, status, truth.status):
                rule = Rule.STATUS if truth.label in self._damaged else Rule.NEIGHBOURS
                self._found.add(rule, truth.label, f"its status is {difference(status, truth.status)}")

    def _is_damaged_end(self, truth: Truth) -> bool:
        return truth.log.end is not None and truth.label in self._damaged

    def _is_true(self, truth: Truth, told: object, true: object) -> bool:
        return told == true or (truth.label in self._damaged and truth.early is not None and told == truth.early)

    async def check_exit_code(self, truth: Truth) -> None:
        """Check that the command line exits as documented where a job is damaged."""
        async with self._limited(truth, "the exit code of status"):
            code = await self._face.exit_code(truth.id, truth.owner)
            if code not in (None, ExitCode.OK, ExitCode.LOG_DAMAGED):
                self._found.add(Rule.ERROR, truth.label, f"`workerctl status` exits with {code}")

    async def check_read(self, truth: Truth, offset: int, streams: Collection[Stream] = BOTH, *, follow: bool) -> None:
        """Check that a reading gives the true bytes and the true end, or says that the job is damaged."""
        how = f"read from {offset} of {sorted(map(int, streams))}{' with follow' if follow else ''}"
        async with self._limited(truth, how):
            try:
                await self._read(truth, offset, streams, how, follow=follow)
            except InvalidArgument:
                if truth.early is None or truth.label not in self._damaged:
                    raise

    async def _read(self, truth: Truth, offset: int, streams: Collection[Stream], how: str, *, follow: bool) -> None:
        log, position, end = truth.log, offset, None
        is_damaged = truth.label in self._damaged
        async with aclosing(self._face.read(truth.id, truth.owner, offset, streams, follow=follow)) as events:
            async for event in events:
                problem, rule = "", Rule.BYTES
                match event:
                    case Hole(start, stop):
                        if (max(start, position), stop) != (position, log.kept_from):
                            problem, rule = f"a gap from {start} to {stop}", Rule.WHOLE
                        position = stop
                    case Piece():
                        problem = log.problem_with(event)
                        if not problem and event.offset != log.next_of(position, streams):
                            problem = f"bytes {event.offset} follow {position}"
                            rule = Rule.WHOLE
                        position = event.offset + len(event.data)
                    case End(value):
                        end = value
                if problem:
                    self._found.add(rule if is_damaged else Rule.NEIGHBOURS, truth.label, f"{how}: {problem}")
                    return
        if truth.early is not None and is_damaged and end is None:
            return
        if log.next_of(position, streams) != log.size:
            rule = Rule.WHOLE if is_damaged else Rule.NEIGHBOURS
            self._found.add(rule, truth.label, f"{how}: it stopped at byte {position} of {log.size}")
        elif end != log.end:
            rule = Rule.END if is_damaged else Rule.NEIGHBOURS
            self._found.add(rule, truth.label, f"{how}: its end is {difference(end, log.end)}")

    async def check_key(self, truth: Truth, folder: Path) -> None:
        """Check that a spawn with the job's key is answered in time, and starts nothing while the job is there."""
        mark = folder / f"again-{truth.label}"
        async with self._limited(truth, "a spawn with its key"):
            command = ["/bin/sh", "-c", f"echo again > '{mark}'"]
            job_id = await self._face.spawn(truth.owner, truth.label, command)
            if job_id != truth.id:
                self._found.add(Rule.ONCE, truth.label, f"its key gave job {job_id}")
            elif mark.exists():
                self._found.add(Rule.ONCE, truth.label, "its key started another program")

    async def check_removal(self, truth: Truth) -> None:
        """Check that the job can be removed, and is gone then."""
        async with self._found.limited(truth.label, "remove"):
            try:
                await self._face.remove(truth.id, truth.owner)
            except DamageReported as error:
                self._found.add(Rule.REMOVABLE, truth.label, f"remove says damaged: {error}")
                return
            try:
                status = await self._face.status(truth.id, truth.owner)
            except Missing:
                return
            except DamageReported as error:
                status = error
            self._found.add(Rule.REMOVABLE, truth.label, f"it was removed, and its status is {status}")

    def _limited(self, truth: Truth, what: str) -> AbstractAsyncContextManager[None]:
        return self._found.limited(truth.label, what, may_be_damaged=truth.label in self._damaged)
