"""The pristine state directory: made once by a real daemon that is killed at the end, and only ever copied."""

import asyncio
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker_api.worker.v1 import JobState

from tests.daemon import Daemon
from tests.damage.daemon_face import DaemonFace, daemon_on
from tests.damage.engine_face import engine_on
from tests.damage.faces import Face
from tests.damage.files import copy_state
from tests.damage.jobs import ADMIN, OTHER_USER, Ending, Script, scripts
from tests.damage.truth import Truth, ask_for_truth, check_against_script
from tests.waiting import eventually
from workerctl.client import Client
from workerd.engine.job import Job, User

_AT_A_TIME = 4
_CALLS = 1000


@dataclass(slots=True)
class Scene:
    """Jobs in a state directory, and the truth about them.

    Attributes:
        pristine: the state directory; never opened.
        truths: by the kind of face and the label of the job.
        users: the users by their names.
    """

    pristine: Path
    truths: dict[str, dict[str, Truth]] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the jobs by their ids."""
        return {truth.id: label for label, truth in self.truths["engine"].items()}


async def open_scene(pristine: Path, work: Path) -> Scene:
    """Make the pristine state directory unless it is there, and ask copies of it for the truth."""
    if not pristine.exists():
        draft = pristine.with_name(f"{pristine.name}.draft")
        await _make(draft, work)
        draft.rename(pristine)
    scene = Scene(pristine)
    copy_state(pristine, work / "for-engine")
    async with engine_on(work / "for-engine") as engine:
        await _learn(scene, engine)
    copy_state(pristine, work / "for-daemon")
    async with daemon_on(work / "for-daemon") as daemon:
        await _learn(scene, daemon)
    return scene


async def _learn(scene: Scene, face: Face) -> None:
    expected = {script.label: script for script in scripts()}
    truths = scene.truths[face.name] = {}
    for row in await face.rows(None):
        label, owner = _name_and_owner(row.value)
        scene.users[owner.name] = owner
        truths[label] = await ask_for_truth(face, label, row.id, owner, row.value)
        check_against_script(truths[label], expected.pop(label))
    assert not expected, f"not listed: {sorted(expected)}"


def _name_and_owner(row: Any) -> tuple[str, User]:
    described = row.spec if isinstance(row, Job) else row
    return described.name, User(described.owner.id, described.owner.name)


async def _make(state: Path, work: Path) -> None:
    folder = work / "scripts"
    folder.mkdir()
    Daemon(state).pki.issue_client(OTHER_USER)
    Daemon(state).pki.issue_client(ADMIN)
    async with daemon_on(state, "--max-audit-bytes", str(1 << 20)) as face:
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def run(script: Script) -> None:
            async with gate:
                await _run(face, script, folder)

        for _ in range(_CALLS):  # so that the audit trail has several files
            await face.client(OTHER_USER).whoami()
        async with asyncio.TaskGroup() as tasks:
            for script in scripts():
                tasks.create_task(run(script))
        face.daemon.stop(signal.SIGKILL)  # so that the catalogue keeps its companions


async def _run(face: DaemonFace, script: Script, folder: Path) -> None:
    client = face.client(script.owner)
    job_id = await client.spawn(script.request(folder))
    if script.ending in (Ending.STOPPED, Ending.LOST):
        await eventually(lambda: _has_printed(client, job_id, script))
        if script.ending is Ending.STOPPED:
            await client.stop(job_id)
        else:
            os.kill(parent_of((await client.status(job_id)).pid), signal.SIGKILL)
    await eventually(lambda: _has_ended(client, job_id))
    if script.rights:
        await client.share(job_id, OTHER_USER, script.rights)


async def _has_printed(client: Client, job_id: str, script: Script) -> bool:
    job = await client.status(job_id)
    return job.stdout_bytes + job.stderr_bytes == sum(len(data) for _, data in script.steps) and job.pid != 0


async def _has_ended(client: Client, job_id: str) -> bool:
    return (await client.status(job_id)).state is JobState.ENDED


def parent_of(pid: int) -> int:
    """Return the id of a process's parent (proc_pid_stat(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
