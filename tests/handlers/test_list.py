"""List."""

import contextlib
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worker_api.worker.v1 import ErrorReason, JobState, ListRequest, ListResponse, SpawnRequest, WorkerServiceStub

from tests.daemon import Daemon, running_daemon
from tests.engine.catalogs import enter_many
from tests.system.test_reload import wait_told
from workerctl.client import Client
from workerctl.errors import CallFailed


async def get_page(client: Client, request: ListRequest) -> ListResponse:
    return await client.call(lambda channel: WorkerServiceStub(channel).list(request))


async def test_pages_hold_every_job_once_and_newest_first(daemon: Daemon) -> None:
    async with daemon.client() as client:
        ids = [await client.spawn(SpawnRequest(program="true")) for _ in range(7)]
        listed: list[str] = []
        request = ListRequest(page_size=3)
        sizes: list[int] = []
        while True:
            page = await get_page(client, request)
            sizes.append(len(page.jobs))
            listed += [job.id for job in page.jobs]
            if not page.next_page_token:
                break
            request = ListRequest(page_size=3, page_token=page.next_page_token)
    assert listed == ids[::-1]
    assert sizes == [3, 3, 1]


async def test_jobs_are_chosen_by_state_and_by_name(daemon: Daemon) -> None:
    async with daemon.client() as client:
        running = await client.spawn(SpawnRequest(program="sleep", args=["1000"], name="long"))
        ended = await client.spawn(SpawnRequest(program="true", name="short"))
        async for _ in client.stream_log(ended):
            pass
        assert [job.id async for job in client.list_jobs([JobState.RUNNING])] == [running]
        assert [job.id async for job in client.list_jobs([JobState.ENDED])] == [ended]
        assert [job.id async for job in client.list_jobs(name="long")] == [running]
        assert [job.id async for job in client.list_jobs([JobState.ENDED], name="long")] == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ListRequest(page_size=1001), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_size=-1), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token="nonsense"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token=f"{'9' * 30}.x"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token="5.x"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(states=[JobState.UNSPECIFIED]), ErrorReason.ARGUMENT_INVALID),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_impossible_requests_are_refused(
    shared_daemon: Daemon, request_: ListRequest, reason: ErrorReason
) -> None:
    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed) as caught:
            await get_page(client, request_)
    assert caught.value.reason is reason


class Crowd:
    """Users of one daemon, of whom one may see everything, and jobs of theirs."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.jobs: dict[str, list[str]] = {"ann": [], "bob": [], "vera": []}

    async def settle(self) -> None:
        """Spawn jobs in turn; bob is given two of ann's."""
        async with contextlib.AsyncExitStack() as stack:
            ann, bob = [await stack.enter_async_context(self.daemon.client(name)) for name in ("ann", "bob")]
            await bob.whoami()
            for _ in range(4):
                self.jobs["ann"].append(await ann.spawn(SpawnRequest(program="true")))
                self.jobs["bob"].append(await bob.spawn(SpawnRequest(program="true", name="bobs")))
            self.jobs["ann"].append(await ann.spawn(SpawnRequest(program="sleep", args=["1000"])))
            self.shared = [self.jobs["ann"][0], self.jobs["ann"][4]]
            for job_id in self.shared:
                await ann.share(job_id, "bob", {"status"})
            await ann.share(self.jobs["ann"][1], "bob", {"stop"})  # with which it is not seen
            for job_id in (*self.jobs["ann"][:4], *self.jobs["bob"]):
                async with self.daemon.client("ann" if job_id in self.jobs["ann"] else "bob") as client:
                    _ = [event async for event in client.stream_log(job_id)]

    async def list(self, user: str, *, size: int = 0, all_owners: bool = True, **chosen: Any) -> list[list[str]]:
        """List jobs page by page."""
        pages: list[list[str]] = []
        token = ""
        async with self.daemon.client(user) as client:
            while True:
                request = ListRequest(page_size=size, page_token=token, all_owners=all_owners, **chosen)
                page = await get_page(client, request)
                pages.append([job.id for job in page.jobs])
                token = page.next_page_token
                if not token:
                    return pages


@pytest.fixture
async def crowd(tmp_path: Path) -> AsyncIterator[Crowd]:
    """Some users and jobs."""
    daemon = Daemon(tmp_path / "state")
    for name in ("ann", "bob", "vera"):
        daemon.pki.issue_client(name)
    with running_daemon(daemon.state, "--roles.viewer", "vera") as running:
        crowd = Crowd(running)
        await crowd.settle()
        yield crowd


async def test_all_owners_shows_whom_it_may_what_it_may(crowd: Crowd) -> None:
    ann, bob = crowd.jobs["ann"], crowd.jobs["bob"]
    [of_vera], [of_ann], [of_bob] = [await crowd.list(name) for name in ("vera", "ann", "bob")]
    assert set(of_vera) == {*ann, *bob}
    assert of_ann == ann[::-1]
    assert set(of_bob) == {*bob, *crowd.shared}
    assert of_bob == [job_id for job_id in of_vera if job_id in of_bob]  # newest first, too
    assert await crowd.list("vera", all_owners=False) == [[]]
    assert await crowd.list("bob", all_owners=False) == [bob[::-1]]
    shown = crowd.daemon.workerctl("list", "--all-owners", user="bob").stdout.decode()
    assert all(job_id in shown for job_id in of_bob)
    assert "ann" in shown
    assert not any(job_id in shown for job_id in ann if job_id not in crowd.shared)


async def test_pages_of_all_owners_tell_nothing_of_what_is_not_seen(crowd: Crowd) -> None:
    [whole] = await crowd.list("bob")
    for size in (1, 2, 3, 5, 6, 7):
        pages = await crowd.list("bob", size=size)
        assert list(itertools.chain(*pages)) == whole
        assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)  # full, whatever lies between
        assert pages[-1]  # and none after the last
    async with crowd.daemon.client("vera") as viewer, crowd.daemon.client("bob") as bob:
        token = (await get_page(viewer, ListRequest(page_size=1, all_owners=True))).next_page_token
        assert token
        page = await get_page(bob, ListRequest(page_token=token, all_owners=True))
        assert {job.id for job in page.jobs} <= set(whole)


async def test_jobs_of_all_owners_are_chosen_by_state_and_name(crowd: Crowd) -> None:
    ann, bob = crowd.jobs["ann"], crowd.jobs["bob"]
    assert await crowd.list("vera", states=[JobState.RUNNING]) == [[ann[4]]]
    assert await crowd.list("bob", states=[JobState.RUNNING]) == [[ann[4]]]
    assert set((await crowd.list("bob", states=[JobState.ENDED]))[0]) == {ann[0], *bob}
    assert await crowd.list("vera", name="bobs") == [bob[::-1]]
    assert await crowd.list("ann", name="bobs") == [[]]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ('permit (principal, action in Action::"Read", resource == Job::"{first}");', 1),
        ('permit (principal, action, resource is Job) when {{ resource == Job::"{first}" }};', 1),
        ('permit (principal, action in Action::"Read", resource is Job) when {{ resource.owner.name == "ann" }};', 2),
        ('forbid (principal, action, resource is Job) unless {{ resource.owner.name == "ann" }};', 0),
    ],
)
async def test_a_list_shows_what_an_operators_policies_permit(tmp_path: Path, text: str, seen: int) -> None:
    """Those of a job by its id, and by its owner."""
    daemon = Daemon(tmp_path / "state")
    for name in ("ann", "bob"):
        daemon.pki.issue_client(name)
    with running_daemon(daemon.state) as running:
        async with running.client("ann") as ann, running.client("bob") as bob:
            ids = [await ann.spawn(SpawnRequest(program="true")) for _ in range(2)]
            own = await bob.spawn(SpawnRequest(program="true"))
            assert [job.id async for job in bob.list_jobs(all_owners=True)] == [own]
            policies = daemon.state / "policies"
            policies.mkdir()
            (policies / "mine.cedar").write_text(text.format(first=ids[0]))
            wait_told(running, "policies were changed and are in force")
            shown = [job.id async for job in bob.list_jobs(all_owners=True)]
    assert shown == ([own, *ids[::-1]] if seen == 2 else [own, ids[0]] if seen else [])


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_shared_job_is_listed_after_a_restart_and_without_the_catalogue(tmp_path: Path, processes: str) -> None:
    daemon = Daemon(tmp_path / "state", ("--processes", processes))
    for name in ("ann", "bob"):
        daemon.pki.issue_client(name)
    with running_daemon(daemon.state, *daemon.options) as running:
        async with running.client("ann") as ann:
            by_name, by_id, _ = [await ann.spawn(SpawnRequest(program="true")) for _ in range(3)]
            await ann.share(by_name, "bob", {"status"})
            async with running.client("bob") as bob:
                me = (await bob.whoami()).user
                assert me is not None
                await ann.share(by_id, me.id, {"status"})
                assert [job.id async for job in bob.list_jobs(all_owners=True)] == [by_id, by_name]
        for lost in (False, True):
            running.stop()
            for path in daemon.state.glob("catalog.sqlite*") if lost else ():
                path.unlink()
            running.start()
            async with running.client("bob") as bob:
                assert [job.id async for job in bob.list_jobs(all_owners=True)] == [by_id, by_name]


def processor_seconds(daemon: Daemon) -> float:
    """Return a daemon's processor time, which other programs do not lengthen (proc_pid_stat(5))."""
    assert daemon.process is not None
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("all_owners", [False, True])
async def test_a_list_takes_no_longer_for_jobs_that_the_caller_may_not_see(tmp_path: Path, all_owners: bool) -> None:
    """Nor does its token contain anything about them."""
    with running_daemon(tmp_path / "state") as daemon:
        async with daemon.client() as client:
            for _ in range(10):
                await client.spawn(SpawnRequest(program="true"))
            request = ListRequest(all_owners=all_owners, page_size=4)

            async def measure() -> tuple[float, list[str]]:
                """Walk all pages 40 times; return the processor time that it took the daemon, and the tokens."""
                tokens: list[str] = []
                began = processor_seconds(daemon)
                for _ in range(40):
                    tokens, page = [], await get_page(client, request)
                    while page.next_page_token:
                        tokens.append(page.next_page_token)
                        page = await get_page(client, replace(request, page_token=tokens[-1]))
                return processor_seconds(daemon) - began, tokens

            await measure()  # what is done once is done
            alone, tokens = await measure()
            now = time.time_ns()
            created = range(now - 5 * 10**9, now, 10**5)
            others = [(str(uuid.uuid4()), str(uuid.uuid4()), created_ns, now, 4096) for created_ns in created]
            enter_many(daemon.state / "catalog.sqlite", others)
            beside, same = await measure()
    assert same == tokens
    assert len(tokens) == 2
    assert beside < 2 * alone, (alone, beside)


async def test_long_arguments_are_cut_in_a_list_and_whole_in_a_status(daemon: Daemon) -> None:
    args = ["x" * 100_000, "last"]
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="true", args=args))
        [row] = [job async for job in client.list_jobs()]
        assert row.args_cut
        assert row.args == ["x" * len(row.args[0])]
        assert len(row.args[0]) < 5000
        stopped = await client.stop(job_id)
        assert stopped.args_cut
        whole = await client.status(job_id)
        assert (whole.args, whole.args_cut) == (args, False)
