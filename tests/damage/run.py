"""One batch: copy the scene, damage the copy, open it, check everything, and sweep up."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.daemon import USER
from tests.damage import trail
from tests.damage.checks import Checker
from tests.damage.daemon_face import daemon_on
from tests.damage.engine_face import engine_on
from tests.damage.faces import Face
from tests.damage.files import Victim, copy_state, damage, find_victims
from tests.damage.mutations import Operation
from tests.damage.plan import Batch, Mutation
from tests.damage.running import RunningJob, running_jobs
from tests.damage.scene import Scene
from tests.damage.truth import Truth
from tests.damage.violations import Findings, Rule
from tests.damage.watchdog import watching_loop
from workerd.engine.errors import EngineError

_OPEN_SECONDS = 30.0
_BLOCKED_SECONDS = 10.0
_COMMANDS = 3
_WITH_CONTENT = 4  # how much likelier a file that has any is drawn than an empty one


@dataclass(slots=True)
class BatchRun:
    """The run of one batch.

    Attributes:
        done: what was done to what, by the numbers of the mutations.
        kinds: the kinds of file and the operations, by the same.
    """

    scene: Scene
    batch: Batch
    seed: int
    folder: Path
    findings: Findings
    done: dict[int, str] = field(default_factory=dict)
    kinds: dict[int, tuple[str, Operation]] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The copy."""
        return self.folder / "state"

    async def go(self) -> None:
        """Do all of it."""
        self.folder.mkdir()
        try:
            async with watching_loop(_BLOCKED_SECONDS) as blocked:
                copy_state(self.scene.pristine, self.state)
                async with AsyncExitStack() as stack:
                    running = await self._start_jobs(stack) if self.batch.runs else {}
                    await self._damage_and_check(running)
            for place in blocked:
                self.findings.add(Rule.HANGS, "", f"the event loop was blocked at {place}")
        finally:
            shutil.rmtree(self.folder)

    async def _start_jobs(self, stack: AsyncExitStack) -> dict[str, RunningJob]:
        async with engine_on(self.state) as face:
            return await stack.enter_async_context(running_jobs(face, self.scene.users[USER], self.folder))

    async def _damage_and_check(self, running: dict[str, RunningJob]) -> None:
        if self.batch.settles:
            async with engine_on(self.state) as face:
                await face.rows(None)
        labels = self.scene.labels | {job.now.id: label for label, job in running.items()}
        if not self.batch.keeps_catalog:
            for path in self.state.glob("catalog.*"):
                path.unlink()
        damaged: set[str] = set()
        for mutation in self.batch.mutations:
            damaged |= self._damage(mutation, labels)
        if self.batch.area == "audit":
            await self._check_trail()
        kind = "daemon" if self.batch.has_daemon and self.batch.area != "audit" else "engine"
        truths = {**self.scene.truths[kind], **{label: job.now for label, job in running.items()}}
        if self.batch.reopens:
            async with self._open(kind) as face:
                if face is not None:
                    checker = self._checker(face, truths, damaged)
                    await checker.check_lists()
                    await asyncio.gather(*self._jobs(checker, truths, damaged, running))
        async with self._open(kind) as face:
            if face is not None:
                await self._check(face, truths, damaged, running)

    def _damage(self, mutation: Mutation, labels: Mapping[str, str]) -> set[str]:
        """Damage as one mutation says, and return the labels of the jobs that were damaged."""
        random = Random(f"{self.seed} {mutation.number}")
        victim = mutation.victim
        if not victim.name:
            found = find_victims(self.state, dict(labels))
            like = [each for each in found if (each.area, each.job) == (victim.area, victim.job)]
            [victim] = random.choices(like, weights=[_WITH_CONTENT if each.size else 1 for each in like])
        other = mutation.other
        for operation in mutation.operations:
            swapped = self._path(other, labels) if other is not None and operation is Operation.SWAP_FILES else None
            description = damage(operation, self._path(victim, labels), swapped, random)
            if description is not None:
                self.kinds[mutation.number] = (victim.kind, operation)
                self.done[mutation.number] = f"{victim}: {description}" + (f" ({other})" if swapped else "")
                return mutation.jobs if swapped else {victim.job} - {""}
        self.done[mutation.number] = f"{victim}: nothing could be done to it"
        return set()

    def _path(self, victim: Victim, labels: Mapping[str, str]) -> Path:
        ids = {label: job_id for job_id, label in labels.items()}
        return self.state / "jobs" / ids[victim.job] / victim.name if victim.job else self.state / victim.name

    @asynccontextmanager
    async def _open(self, kind: str) -> AsyncIterator[Face | None]:
        """Open the copy; None, and a violation, when that fails without a clear reason where one is allowed."""
        opening: AbstractAsyncContextManager[Face] = (
            engine_on(self.state) if kind == "engine" else daemon_on(self.state)
        )
        self.findings.checks += 1
        async with AsyncExitStack() as stack:
            face = None
            try:
                async with asyncio.timeout(_OPEN_SECONDS):
                    face = await stack.enter_async_context(opening)
            except (Exception, ExceptionGroup) as error:
                if not (self.batch.is_alone or self.batch.area == "audit") or not _is_clear(error):
                    self.findings.add(Rule.STARTS, "", f"the {kind} did not start: {type(error).__name__}: {error}")
            yield face
            closing = asyncio.create_task(stack.aclose())
            done, _ = await asyncio.wait([closing], timeout=_OPEN_SECONDS)
            if not done:
                self.findings.add(Rule.HANGS, "", f"the {kind} did not end within {_OPEN_SECONDS:g} s")
                closing.cancel()
            try:
                await closing
            except Exception as error:
                self.findings.add(Rule.STARTS, "", f"the {kind} failed: {type(error).__name__}: {error}")

    def _checker(self, face: Face, truths: Mapping[str, Truth], damaged: set[str]) -> Checker:
        return Checker(face, truths, damaged, self.findings, keeps_owners=self.batch.keeps_catalog)

    def _jobs(
        self, checker: Checker, truths: Mapping[str, Truth], labels: set[str], running: Mapping[str, RunningJob]
    ) -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(
                checker.check_job(truths[label], Random(f"{self.seed} reads {label}"), runs=label in running)
            )
            for label in sorted(labels)
        ]

    async def _check(
        self, face: Face, truths: dict[str, Truth], damaged: set[str], running: dict[str, RunningJob]
    ) -> None:
        checker = self._checker(face, truths, damaged)
        await checker.check_lists()
        await asyncio.gather(*self._jobs(checker, truths, {*truths}, running))
        if running:
            await self._finish(checker, running)
            truths |= {label: job.later for label, job in running.items()}
            checker = self._checker(face, truths, damaged)
            await asyncio.gather(*(checker.check_job(job.later, Random(0)) for job in running.values()))
        for label in sorted(damaged)[:_COMMANDS]:
            await checker.check_exit_code(truths[label])
        chosen = damaged | ({*running} if running else {sorted(truths)[self.seed % len(truths)]})
        await asyncio.gather(*(checker.check_key(truths[label], self.folder) for label in sorted(chosen)))
        await asyncio.gather(*(checker.check_status(truths[label]) for label in sorted(chosen)))
        await asyncio.gather(*(checker.check_removal(truths[label]) for label in sorted(chosen)))
        await checker.check_lists(gone=chosen)

    async def _finish(self, checker: Checker, running: Mapping[str, RunningJob]) -> None:
        """Let the running jobs end while they are followed."""
        following = [asyncio.create_task(checker.check_read(job.later, 0, follow=True)) for job in running.values()]
        for label, job in running.items():
            if not await job.finish():
                self.findings.add(Rule.HANGS, label, "its supervisor did not end after its program")
        await asyncio.gather(*following)

    async def _check_trail(self) -> None:
        """Check that a verification finds the damage, and still does after a daemon has gone on with the trail."""
        folder = self.state / "audit"
        self.findings.checks += 2
        if not (what := trail.finding(folder)):
            self.findings.add(Rule.TRAIL, "", "a verification finds nothing")
        async with self._open("daemon") as face:
            if face is not None:
                try:
                    async with asyncio.timeout(_OPEN_SECONDS):
                        await face.rows(None)
                except Exception as error:
                    if "audit" not in str(error):
                        self.findings.add(Rule.SCANS, "", f"the list failed: {type(error).__name__}: {error}")
        if not trail.is_whole(folder, self.scene.pristine / "audit") and not trail.finding(folder):
            self.findings.add(Rule.TRAIL, "", f"a daemon went on, and a verification does not find any more: {what}")


def _is_clear(error: BaseException) -> bool:
    """Return whether an error at the start was raised on purpose, or is a daemon's last words without a traceback."""
    if isinstance(error, AssertionError):
        return "Traceback" not in str(error)
    return isinstance(error, EngineError)
