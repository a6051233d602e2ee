"""The comparison with the truth finds each kind of untruth: a check that never fails checks nothing."""

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.damage.checks import Checker
from tests.damage.faces import BOTH, DamageReported, End, Event, Hole, Piece, Row
from tests.damage.truth import KnownLog, Truth
from tests.damage.violations import Findings, Rule
from workerd.engine.job import Stream, User

OWNER = User("id-of-owner", "owner")
LOG: list[Event] = [
    Hole(0, 10),
    Piece(10, 1, 6, 100, b"0123456789"),
    Piece(20, 2, 4, 101, b"abcde"),
    Piece(25, 1, 16, 102, b"xyz"),
    End("the end"),
]
TRUTH = Truth("job", "id", OWNER, "row", "status", KnownLog.of(LOG), frozenset())


@dataclass
class Liar:
    """A face that tells what it is given."""

    events: list[Event | Exception]
    listed: list[Row]
    name: str = "engine"

    async def rows(self, owner: User | None) -> list[Row]:  # noqa: ARG002
        return self.listed

    async def read(
        self, job_id: str, owner: User, offset: int, streams: Collection[Stream] = BOTH, *, follow: bool
    ) -> AsyncGenerator[Event, None]:
        del job_id, owner, offset, streams, follow
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event


async def _rules(face: Any, damaged: Collection[str] = ("job",), offset: int = 0) -> list[Rule]:
    findings = Findings(5.0)
    checker = Checker(face, {"job": TRUTH}, damaged, findings, keeps_owners=True)
    if face.listed:
        await checker.check_lists()
    else:
        await checker.check_read(TRUTH, offset, follow=True)
    return [violation.rule for violation in findings.violations]


async def test_the_truth_and_damage_that_is_told_are_no_violations() -> None:
    assert await _rules(Liar([*LOG], [])) == []
    assert await _rules(Liar([*LOG[:2], DamageReported()], [])) == []
    assert (
        await _rules(Liar([Piece(12, 1, 8, 100, b"234567"), Piece(18, 1, 14, 100, b"89"), *LOG[2:]], []), (), 12) == []
    )
    assert await _rules(Liar([], [Row("id", OWNER.id, "row")])) == []
    assert await _rules(Liar([], [Row("id", "", None, "no spec")])) == []


@pytest.mark.parametrize(
    ("place", "event", "rule"),
    [
        (1, Piece(10, 1, 6, 100, b"0123456788"), Rule.BYTES),
        (1, Piece(10, 2, 6, 100, b"0123456789"), Rule.BYTES),
        (1, Piece(10, 1, 5, 100, b"0123456789"), Rule.BYTES),
        (1, Piece(10, 1, 6, 99, b"0123456789"), Rule.BYTES),
        (1, Piece(10, 1, 6, 100, b"012345678"), Rule.WHOLE),
        (1, Piece(11, 1, 7, 100, b"123456789"), Rule.WHOLE),
        (2, Piece(20, 1, 4, 101, b"abcdexyz"), Rule.BYTES),
        (2, Hole(20, 25), Rule.WHOLE),
        (0, Hole(0, 20), Rule.WHOLE),
        (4, End("another end"), Rule.END),
        (3, End("the end"), Rule.WHOLE),
    ],
)
async def test_each_untruth_about_a_log_is_found(place: int, event: Event, rule: Rule) -> None:
    told: list[Event | Exception] = [*LOG[:place], event, *LOG[place + 1 :]]
    assert await _rules(Liar(told, [])) == [rule]
    assert await _rules(Liar(told, []), damaged=()) == [Rule.NEIGHBOURS]


async def test_each_untruth_about_a_list_is_found() -> None:
    true = Row("id", OWNER.id, "row")
    for rows in (
        [replace(true, id="another")],
        [true, true],
        [replace(true, owner="another")],
        [replace(true, value="another")],
        [replace(true, value=None)],
    ):
        assert Rule.LISTED in await _rules(Liar([], rows))
    assert Rule.NEIGHBOURS in await _rules(Liar([], [replace(true, value=None, problem="?")]), damaged=())


async def test_errors_that_are_no_reports_of_damage_are_violations() -> None:
    assert await _rules(Liar([ValueError()], [])) == [Rule.ERROR]
    assert await _rules(Liar([TimeoutError()], [])) == [Rule.HANGS]
    assert await _rules(Liar([DamageReported()], []), damaged=()) == [Rule.NEIGHBOURS]
