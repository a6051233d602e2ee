"""The matrix of docs/security.md: one test for each of its cells."""

import os
import pwd
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import ProtocolError
from worker_api.worker.v1 import ErrorReason, WorkerServiceBase

from tests.matrix.callers import World, alert, everybody, install_example
from tests.matrix.calls import NOBODYS, Wish, wishes
from tests.matrix.table import REFUSED, YES, Line, read_table
from workerctl.transport import WorkerChannel
from workerd.registry import load_routes, rights_of

CALLERS, LINES = read_table()
ACCOUNT = pwd.getpwuid(os.geteuid()).pw_name
WISHES = wishes(ACCOUNT, "nobody")
CELLS = [pytest.param(line, caller, id=f"{line.call}: {caller}") for line in LINES for caller in CALLERS]
OF_LISTS = next(line.cells for line in LINES if line.rpc == "List")
REASONS = {
    "NOT_FOUND": ErrorReason.JOB_NOT_FOUND,
    "PERMISSION_DENIED": ErrorReason.NOT_PERMITTED,
}
ALERTS = {
    "revoked": "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "revoked since": "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "expired": "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "expired since": "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "none": "TLSV13_ALERT_CERTIFICATE_REQUIRED",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes of a call.

    Attributes:
        word: as it stands in the table.
        message: what it answered with, or why not.
    """

    word: str
    reason: ErrorReason | None
    message: Any


async def ask(wish: Wish, channel: WorkerChannel, job_id: str) -> Answer:
    """Make a call."""
    try:
        answer = await wish.make(channel, job_id)
    except GRPCError as error:
        [detail] = error.details or []
        return Answer(error.status.name, detail.reason, error.message)
    except (StreamTerminatedError, ProtocolError, OSError):
        assert channel.heard_at is None, channel.lost_because
        return Answer(REFUSED, None, "the daemon has said nothing")
    return Answer(YES, None, answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, with the example installed for the daemon that is going to run in it."""
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        install_example(folder / "packages", patch)
        yield folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(served: Path) -> AsyncIterator[World]:
    """A daemon, and everybody."""
    async with everybody(served, ACCOUNT) as world:
        yield world


def test_every_call_of_the_table_can_be_made_and_no_other() -> None:
    assert {line.call for line in LINES} == set(WISHES)


@pytest.mark.asyncio(loop_scope="module")
async def test_every_column_is_somebody(world: World) -> None:
    assert set(CALLERS) == set(world.connect)


def test_every_rpc_and_every_right_has_a_line(served: Path) -> None:
    """Those of the contract, those of the example, and the rights that handlers ask for besides."""
    del served
    routes = load_routes()
    paths = {*WorkerServiceBase().__mapping__(), *routes}
    assert {line.rpc for line in LINES} == {path.rpartition("/")[2] for path in paths}
    assert {line.right for line in LINES} == set(rights_of(routes.values()))
    for line in LINES:
        handlers = [route.handler for route in routes.values() if route.handler.rpc == line.rpc]
        assert any(line.right in (handler.right, *handler.further, "impersonate") for handler in handlers), line.call


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("line", "caller"), CELLS)
async def test_cell(world: World, line: Line, caller: str) -> None:
    if "another account" in line.call and line.cells[caller] == YES and os.geteuid() != 0:
        pytest.skip("only root may take on another account")
    wish, channel = WISHES[line.call], world.connect[caller]()
    job_id = "" if wish.job is None else await wish.job(world)
    before = world.state(job_id or None)
    answer = await ask(wish, channel, job_id)
    after = world.state(job_id or None)
    assert answer.word == line.cells[caller], answer.message
    match answer.word:
        case "yes":
            assert wish.tells(answer.message), answer.message
            assert (before != after) is wish.changes
            return
        case "refused":
            assert alert(world.turned_away[caller]) == ALERTS[caller]
        case word:
            assert answer.reason is REASONS[word]
    assert after == before
    if answer.word == "NOT_FOUND":
        absent = await ask(wish, channel, NOBODYS)
        assert absent.message.replace(NOBODYS, job_id) == answer.message
        assert (absent.word, absent.reason) == (answer.word, answer.reason)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("caller", [caller for caller, cell in OF_LISTS.items() if cell == YES])
async def test_lists_show_what_may_be_seen(world: World, caller: str) -> None:
    """A list of one's own has one's own jobs; one of all owners has the job if one may ask how it is."""
    may_see = next(line for line in LINES if line.call == "`Status`").cells[caller] == YES
    for call, shown in (("`List`", caller == "owner"), ("`List` of all owners", may_see)):
        answer = await ask(WISHES[call], world.connect[caller](), "")
        assert (world.standing in {job.id for job in answer.message.jobs}) is shown, call
