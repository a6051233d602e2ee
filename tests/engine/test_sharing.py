"""Whom a job is shared with."""

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.engine.logs import ME, read_log, run, shell
from tests.waiting import LIMIT_SECONDS, eventually
from workerd.engine import identity
from workerd.engine.engine import Engine
from workerd.engine.errors import InvalidArgument, JobIdMalformed, JobNotFound, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import Share, User
from workerd.engine.journal import Specified, encode
from workerd.engine.sharing import MAX_USERS

ANNA = User("22222222-2222-4222-8222-222222222222", "anna")
BERT = User("33333333-3333-4333-8333-333333333333", "bert")
NOBODYS = "00000000-0000-4000-8000-000000000000"


def user(number: int) -> User:
    return User(f"{number:08x}-2222-4222-8222-222222222222", f"user {number}")


async def start(engine: Engine) -> str:
    await run(engine, shell("true", request_key="one"))
    return await engine.spawn(shell("true", request_key="one"))


async def test_rights_are_given_replaced_and_taken_back(engine: Engine, tmp_path: Path) -> None:
    job_id = await start(engine)
    folder = JobFolder(tmp_path / "state" / "jobs" / job_id)
    assert engine.shares(job_id) == ()
    assert not folder.shares.exists()
    assert await engine.share(job_id, BERT, ["stop", "status", "stop"]) == (Share(BERT, ("status", "stop")),)
    both = (Share(ANNA, ("status",)), Share(BERT, ("status", "stop")))
    assert await engine.share(job_id, ANNA, {"status"}) == engine.shares(job_id) == both
    assert stat.S_IMODE(folder.shares.stat().st_mode) == 0o600
    assert msgspec.json.decode(folder.shares.read_bytes()[8:])[0] == {
        "user": {"id": ANNA.id, "name": "anna"},
        "rights": ["status"],
    }
    renamed = User(BERT.id, "albert")
    assert await engine.share(job_id, renamed, ["status"]) == (Share(renamed, ("status",)), Share(ANNA, ("status",)))
    assert await engine.share(job_id, ANNA, []) == (Share(renamed, ("status",)),)
    assert await engine.share(job_id, ANNA, []) == (Share(renamed, ("status",)),)
    assert await engine.share(job_id, BERT, []) == engine.shares(job_id) == ()
    async with Engine(tmp_path / "state", keeps=False) as another:
        assert await another.share(job_id, ANNA, ["stop"]) == engine.shares(job_id)


async def test_a_job_that_runs_and_ends_has_nobody_look_anew_with_whom_it_is_shared(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with Engine(tmp_path / "state", on_end=lambda *_: None) as engine:
        job_id = await engine.spawn(shell(f"echo before; read line <{gate}; echo after"))
        folder = JobFolder(tmp_path / "state" / "jobs" / job_id)

        async def told() -> bool:
            return folder.read().is_told

        with engine.watch_shares(job_id) as changed:
            await asyncio.to_thread(gate.write_text, "go\n")
            assert (await read_log(engine, job_id)).stdout == b"before\nafter\n"
            await eventually(told)
            await asyncio.sleep(0.1)  # nothing is to come of it
            assert not changed.is_set()
            await engine.share(job_id, BERT, ["stop"])
            async with asyncio.timeout(LIMIT_SECONDS):
                await changed.wait()
            assert not changed.is_gone
            changed.clear()
            await engine.remove(job_id)
            async with asyncio.timeout(LIMIT_SECONDS):
                await changed.wait()
            assert changed.is_gone


async def test_a_spec_tells_the_owner_whatever_else_is_damaged(engine: Engine, tmp_path: Path) -> None:
    job_id = await start(engine)
    folder = JobFolder(tmp_path / "state" / "jobs" / job_id)
    first = len(encode(Specified(identity.read(tmp_path / "state" / "spool"), engine.spec(job_id)), job_id, 0))
    with folder.journal.open("r+b") as journal:
        journal.seek(first)
        journal.write(b"damaged")
    for path in (folder.index, folder.spec, folder.shares):
        path.unlink(missing_ok=True)
        path.write_bytes(b"damaged")
    assert folder.read().size == first
    assert engine.spec(job_id.upper()).owner == ME
    with pytest.raises(SpoolCorrupt, match="shares"):
        engine.shares(job_id)
    with pytest.raises(SpoolCorrupt):
        await engine.share(job_id, ANNA, ["stop"])
    folder.journal.write_bytes(b"damaged")
    with pytest.raises(SpoolCorrupt, match="journal"):
        engine.spec(job_id)


async def test_of_no_job_nothing_can_be_asked_nor_shared(engine: Engine, tmp_path: Path) -> None:
    stray = tmp_path / "state" / "jobs" / NOBODYS.replace("8", "9")
    stray.write_text("no folder")
    for job_id in (NOBODYS, stray.name):
        with pytest.raises(JobNotFound):
            engine.spec(job_id)
        with pytest.raises(JobNotFound):
            engine.shares(job_id)
        with pytest.raises(JobNotFound):
            await engine.share(job_id, ANNA, ["stop"])
    stray.unlink()
    for ask in (engine.spec, engine.shares):
        with pytest.raises(JobIdMalformed):
            ask("../spec")
    with pytest.raises(JobIdMalformed):
        await engine.share("../spec", ANNA, ["stop"])


async def test_a_job_is_shared_with_a_bounded_number_of_users(engine: Engine, tmp_path: Path) -> None:
    job_id = await start(engine)
    folder = JobFolder(tmp_path / "state" / "jobs" / job_id)
    folder.write_shares(tuple(Share(user(number), ("stop",)) for number in range(MAX_USERS)))
    with pytest.raises(InvalidArgument, match=f"{MAX_USERS} users at most"):
        await engine.share(job_id, ANNA, ["stop"])
    assert len(await engine.share(job_id, user(7), ["status"])) == MAX_USERS
    assert len(await engine.share(job_id, user(8), [])) == MAX_USERS - 1
    assert len(await engine.share(job_id, ANNA, ["stop"])) == MAX_USERS


SHARE_MANY = """
import sys
from pathlib import Path
from workerd.engine.folder import JobFolder
from workerd.engine.job import User
from workerd.engine.sharing import set_rights
for number in range(30):
    set_rights(JobFolder(Path(sys.argv[1])), User(f"{sys.argv[2]}-{number}", f"{sys.argv[2]}-{number}"), ["stop"])
"""


async def test_processes_that_share_at_the_same_time_undo_nothing_of_each_other(engine: Engine, tmp_path: Path) -> None:
    job_id = await start(engine)
    folder = tmp_path / "state" / "jobs" / job_id
    sharing = [subprocess.Popen([sys.executable, "-c", SHARE_MANY, str(folder), str(n)]) for n in range(3)]
    await asyncio.gather(*(engine.share(job_id, user(number), ["stop"]) for number in range(30)))
    assert [process.wait(timeout=60) for process in sharing] == [0, 0, 0]
    assert len(engine.shares(job_id)) == 4 * 30


async def test_sharing_and_removing_at_the_same_time_leave_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    for _ in range(30):
        job_id = await start(engine)
        sharing = asyncio.gather(
            *(engine.share(job_id, user(number), ["stop"]) for number in range(4)), return_exceptions=True
        )
        await asyncio.sleep(0)
        await engine.remove(job_id)
        for outcome in await sharing:
            assert isinstance(outcome, tuple | JobNotFound), outcome
        with pytest.raises(JobNotFound):
            engine.shares(job_id)
        await start(engine)
        assert engine.shares(job_id) == ()
        await engine.remove(job_id)
    assert list((tmp_path / "state" / "removed").iterdir()) == []
    assert list((tmp_path / "state" / "jobs").iterdir()) == []


async def test_any_number_who_share_a_job_do_not_keep_it_from_being_removed(engine: Engine) -> None:
    """They wait in threads, of which there are only so many."""
    for _ in range(5):
        job_id = await start(engine)
        sharing = [asyncio.create_task(engine.share(job_id, user(number), ["stop"])) for number in range(100)]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await engine.remove(job_id)
            await asyncio.wait(sharing)
        assert {type(each.exception()) for each in sharing} <= {type(None), JobNotFound}
