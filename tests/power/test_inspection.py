"""What is wrong after a cut is found, whatever it is: each violation is made by a view that tells something wrong."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import xxhash

from tests.power.cuts import Cut, Variant
from tests.power.inspection import Inspection
from tests.power.ledger import Story
from tests.power.verdict import Count, Verdict
from tests.power.views import End, Hole, Log, Missing, Piece, Unreadable

PRINTED = b"one\ntwo\nthree\n"
NOTHING = (0, xxhash.xxh3_128_hexdigest(b""))
TRUE_END = End("exited 0", (len(PRINTED), xxhash.xxh3_128_hexdigest(PRINTED)), NOTHING)
LOST = End("lost", (4, xxhash.xxh3_128_hexdigest(PRINTED[:4])), NOTHING)
CUT = Cut(count=1, position=100, since_ns=2_000_000_000, time_ns=3_000_000_000, variant=Variant.PREFIX, seed=1)
ID = "a-job"


class FakeView:
    """Tells what it is set to."""

    def __init__(self, log: Log | Exception, listed: dict[str, bool]) -> None:
        self._log = log
        self._listed = listed

    async def listed(self) -> dict[str, bool]:
        return dict(self._listed)

    async def read(self, job_id: str, offset: int = 0) -> Log:
        del job_id, offset
        if isinstance(self._log, Exception):
            raise self._log
        return self._log

    async def shared_with(self, job_id: str) -> set[str]:
        del job_id
        return set()


def story(*, told_end: bool) -> Story:
    """Return a job whose id, and perhaps end, had been told before the cut."""
    return Story(
        "kind",
        lambda: iter(()),
        id=ID,
        spawned_at=50,
        ended_at=100 if told_end else 101,
        started_ns=1_000_000_000,
        ended_ns=2_000_000_000 if told_end else 9_000_000_000,
        end=TRUE_END,
        arrivals=[(4, 1_000_000_000), (8, 1_500_000_000), (14, 4_000_000_000)],
        printed={1: PRINTED, 2: b""},
    )


def piece(offset: int, data: bytes) -> Piece:
    return Piece(offset, 1, offset, data)


async def inspect(
    log: Log | Exception,
    *,
    told_end: bool,
    listed: dict[str, bool] | None = None,
    change: Callable[[Story], Story] = lambda story: story,
) -> Verdict:
    """Look at one job after a cut."""
    verdict = Verdict()
    view = FakeView(log, {ID: False} if listed is None else listed)
    await Inspection(view, CUT, verdict).inspect([change(story(told_end=told_end))])
    return verdict


async def test_a_job_as_it_was_told_is_no_violation() -> None:
    verdict = await inspect(Log([piece(0, PRINTED)], TRUE_END), told_end=True)
    assert not verdict.problems
    assert verdict.counts[Count.ENDS] == verdict.counts[Count.READS] == 1


async def test_a_lost_job_with_the_beginning_of_its_output_is_no_violation_and_its_loss_is_measured() -> None:
    verdict = await inspect(Log([piece(0, PRINTED[:4])], LOST), told_end=False)
    assert not verdict.problems
    assert verdict.counts[Count.LOST] == 1
    assert verdict.lost_seconds == [1.5], "the second piece had come that long before the cut"


WRONG = {
    "gone, end told": (Missing(), True, {}, Count.END_MISSING),
    "gone, id told": (Missing(), False, {}, Count.SPAWN_MISSING),
    "damaged, end told": (Unreadable("x"), True, {ID: True}, Count.END_UNREADABLE),
    "damaged, ran": (Unreadable("x"), False, {ID: True}, Count.RAN_UNREADABLE),
    "hangs": (TimeoutError(), False, None, Count.FAILED),
    "lost, end told": (Log([piece(0, PRINTED[:4])], LOST), True, None, Count.END_OTHER),
    "cut, end told": (Log([piece(0, PRINTED[:4])], TRUE_END), True, None, Count.END_INCOMPLETE),
    "cut, end not told": (Log([piece(0, PRINTED[:4])], TRUE_END), False, None, Count.WRONG_SUMMARY),
    "blank": (Log([piece(0, PRINTED[:4]), piece(4, bytes(10))], LOST), False, None, Count.WRONG_BYTES),
    "more than was printed": (Log([piece(0, PRINTED + b"x")], LOST), False, None, Count.WRONG_BYTES),
    "missing in between": (Log([piece(0, PRINTED[:4]), Hole(4, 8)], LOST), False, None, Count.HOLES),
    "missing without a word": (Log([piece(4, PRINTED[4:])], LOST), False, None, Count.HOLES),
    "another digest": (Log([piece(0, PRINTED[:3])], LOST), False, None, Count.WRONG_SUMMARY),
    "another end": (Log([piece(0, PRINTED)], replace(TRUE_END, cause="exited 1")), False, None, Count.WRONG_SUMMARY),
    "no end": (Log([piece(0, PRINTED)], None), False, None, Count.FAILED),
    "not in the list": (Log([piece(0, PRINTED)], TRUE_END), True, {}, Count.UNLIKE_LIST),
    "damaged in the list": (Log([piece(0, PRINTED)], TRUE_END), True, {ID: True}, Count.UNLIKE_LIST),
    "damaged, not in the list": (Unreadable("x"), False, {}, Count.UNLIKE_LIST),
    "damaged, well in the list": (Unreadable("x"), False, {ID: False}, Count.UNLIKE_LIST),
    "only in the list": (Missing(), False, {ID: False}, Count.UNLIKE_LIST),
    "unheard of": (Log([piece(0, PRINTED)], TRUE_END), True, {ID: False, "another": False}, Count.UNLIKE_LIST),
}


@pytest.mark.parametrize(("log", "told_end", "listed", "count"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_found(
    log: Log | Exception, told_end: bool, listed: dict[str, bool] | None, count: Count
) -> None:
    verdict = await inspect(log, told_end=told_end, listed=listed)
    assert count in verdict.problems, verdict.describe_problems()


async def test_a_share_that_is_gone_is_found() -> None:
    def share(story: Story) -> Story:
        story.shared_at, story.shared_with = 90, "a-friend"
        return story

    verdict = await inspect(Log([piece(0, PRINTED)], TRUE_END), told_end=True, change=share)
    assert set(verdict.problems) == {Count.SHARE_MISSING}


async def test_released_output_is_a_hole_only_at_the_beginning_of_a_limited_log() -> None:
    def limit(story: Story) -> Story:
        story.limited = True
        return story

    released = Log([Hole(0, 4), piece(4, PRINTED[4:])], TRUE_END)
    assert set((await inspect(released, told_end=True)).problems) == {Count.HOLES}
    assert not (await inspect(released, told_end=True, change=limit)).problems


async def test_a_damaged_job_counts_by_what_had_been_told_of_it_and_by_whether_it_had_run() -> None:
    def forget(story: Story) -> Story:
        story.spawned_at = 101
        return story

    def start_later(story: Story) -> Story:
        story.started_ns = 2_500_000_000
        return forget(story)

    listed = {ID: True}
    untold = await inspect(Unreadable("x"), told_end=False, listed=listed, change=forget)
    assert set(untold.problems) == {Count.UNTOLD_UNREADABLE}
    unstarted = await inspect(Unreadable("x"), told_end=False, listed=listed, change=start_later)
    assert not unstarted.problems
    assert unstarted.counts[Count.LEFTOVERS] == 1
