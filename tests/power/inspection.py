"""Comparing what a reader sees after a cut with what clients had been told before it."""

import asyncio
import bisect
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from tests.power.cuts import Cut
from tests.power.ledger import Story
from tests.power.verdict import Count, Verdict
from tests.power.views import End, Hole, Log, Missing, Piece, Unreadable, View

_AT_ONCE = 6  # reads: a daemon answers while its client takes in
_MOST_LOST_SECONDS = 10.0  # the interval, and as long again for a disk that is busy
_LONG_BYTES = 10_000
_SHORT_SHARE = 0.1  # of the short logs that are read from an offset, too


@dataclass(frozen=True, slots=True)
class Served:
    """How far a read of a log from its beginning got.

    Attributes:
        position: in the combined output.
        streams: in each stream, if anything of it was served.
        exact: whether every byte was one that the program printed, in its place.
    """

    position: int
    streams: dict[int, int]
    exact: bool


class Inspection:
    """Looks at every job after one cut.

    Args:
        view: of the state directory after the cut.
        verdict: where it is counted.
    """

    def __init__(self, view: View, cut: Cut, verdict: Verdict) -> None:
        self._view = view
        self._cut = cut
        self._verdict = verdict
        self._random = random.Random(cut.seed)

    async def inspect(self, stories: Sequence[Story]) -> None:
        """Look at all jobs of a scene."""
        listed = await self._list()
        slots = asyncio.Semaphore(_AT_ONCE)

        async def inspect_one(story: Story) -> None:
            async with slots:
                damaged = await self._inspect_job(story)
                if listed is not None:
                    self._compare_with_list(story, damaged=damaged, in_list=listed.get(story.id))
                if story.shared_at is not None and story.shared_at <= self._cut.position:
                    await self._inspect_share(story)

        await asyncio.gather(*(inspect_one(story) for story in stories))
        for job_id in (listed or {}).keys() - {story.id for story in stories}:
            self._verdict.violate(Count.UNLIKE_LIST, f"job {job_id} is in the list, and was never started")

    async def _list(self) -> dict[str, bool] | None:
        try:
            return await self._view.listed()
        except Exception as error:  # whatever it is, it is no list
            self._verdict.violate(Count.FAILED, f"the list at {self._cut}: {error!r}")
            return None

    def _compare_with_list(self, story: Story, *, damaged: bool | None, in_list: bool | None) -> None:
        """Compare what a read found with the list: each is None where the job is not there."""
        if damaged is False and in_list is not False:
            listed = "does not have it" if in_list is None else "says that it is damaged"
            self._violate(Count.UNLIKE_LIST, story, f"it can be read, and the list before {listed}")
        if damaged and not in_list:
            self._violate(Count.UNLIKE_LIST, story, "it is damaged, and the list before does not say so")
        if damaged is None and in_list is not None:
            self._violate(Count.UNLIKE_LIST, story, "the list has it, and it is not there")

    async def _inspect_job(self, story: Story) -> bool | None:
        """Look at one job; return whether it is damaged, None if it is not there."""
        cut, counts = self._cut, self._verdict.counts
        told_end, told_spawn = story.ended_at <= cut.position, story.spawned_at <= cut.position
        ran = told_spawn or story.started_ns <= cut.since_ns
        counts[Count.ENDS] += told_end
        counts[Count.RAN] += ran and not told_end
        counts[Count.SPAWNS] += told_spawn and not told_end
        began = time.monotonic()
        try:
            log = await self._view.read(story.id)
        except Missing:
            if told_end:
                self._violate(Count.END_MISSING, story, "its end had been told")
            elif told_spawn:
                self._violate(Count.SPAWN_MISSING, story, "its id had been told")
            return None
        except Unreadable as error:
            if told_end:
                self._violate(Count.END_UNREADABLE, story, _shorten(error))
            elif told_spawn:
                self._violate(Count.RAN_UNREADABLE, story, _shorten(error))
            elif ran:
                self._violate(Count.UNTOLD_UNREADABLE, story, _shorten(error))
            else:
                counts[Count.LEFTOVERS] += 1
            return True
        except Exception as error:  # whatever it is, it is no answer
            self._violate(Count.FAILED, story, repr(error))
            return False
        self._verdict.read_seconds.append(time.monotonic() - began)
        served = self._check_bytes(story, log, 0)
        self._check_end(story, log.end, served, told=told_end)
        if log.end is not None and log.end.lost and told_spawn and served.exact:
            self._measure_loss(story, served.position)
        await self._read_from_offsets(story, served.position, log.end)
        return False

    async def _read_from_offsets(self, story: Story, size: int, end: End | None) -> None:
        if size == 0:
            return
        times = 2 if size > _LONG_BYTES else int(self._random.random() < _SHORT_SHARE)
        for _ in range(times):
            offset = self._random.randint(0, size)
            try:
                log = await self._view.read(story.id, offset)
            except Exception as error:  # whatever it is, it is no answer
                self._violate(Count.FAILED, story, f"read from {offset}: {error!r}")
                continue
            served = self._check_bytes(story, log, offset)
            if (served.position, log.end) != (size, end):
                self._violate(Count.WRONG_SUMMARY, story, f"read from {offset}, it ends in another way")

    def _check_bytes(self, story: Story, log: Log, start: int) -> Served:
        """Check each byte of a read, and that nothing is missing in between."""
        self._verdict.counts[Count.READS] += 1
        position, exact = start, True
        streams = {1: 0, 2: 0} if start == 0 else {}
        for number, event in enumerate(log.events):
            match event:
                case Hole():
                    if not (story.limited and number == 0 and event.start == start):
                        exact = False
                        self._violate(Count.HOLES, story, f"bytes {event.start} to {event.end} are missing")
                    streams = {}
                    position = event.end
                case Piece():
                    in_place = event.offset == position and event.stream_offset == streams.get(
                        event.stream, event.stream_offset
                    )
                    if not in_place:
                        exact = False
                        self._violate(Count.HOLES, story, f"byte {event.offset} comes after {position}")
                    if (wrong := _find_wrong(story.printed[event.stream], event)) is not None:
                        exact = False
                        self._violate(Count.WRONG_BYTES, story, wrong)
                    position = event.offset + len(event.data)
                    streams[event.stream] = event.stream_offset + len(event.data)
        return Served(position, streams, exact)

    def _check_end(self, story: Story, end: End | None, served: Served, *, told: bool) -> None:
        """Check how a job is said to have ended, and the sizes and digests that are told with it."""
        if end is None:
            self._violate(Count.FAILED, story, "its log stops without an end")
        elif end == story.end:
            if served.position != end.size:
                count = Count.END_INCOMPLETE if told else Count.WRONG_SUMMARY
                self._violate(count, story, f"{served.position} of {end.size} bytes")
            self._verdict.counts[Count.ENDED] += not told
        elif told:
            self._violate(Count.END_OTHER, story, f"{end} instead of {story.end}")
        elif not end.lost:
            self._violate(Count.WRONG_SUMMARY, story, f"{end} instead of lost or {story.end}")
        else:
            self._verdict.counts[Count.LOST] += 1
            if served.exact:
                self._check_summary(story, end, served)

    def _check_summary(self, story: Story, end: End, served: Served) -> None:
        for stream, (size, digest) in {1: end.stdout, 2: end.stderr}.items():
            right = xxhash.xxh3_128_hexdigest(story.printed[stream][:size])
            if size != served.streams.get(stream, size) or digest not in (right, "" if story.limited else right):
                self._violate(Count.WRONG_SUMMARY, story, f"stream {stream} is said to be {size} bytes, {digest}")

    async def _inspect_share(self, story: Story) -> None:
        self._verdict.counts[Count.SHARES] += 1
        try:
            shared_with = await self._view.shared_with(story.id)
        except Exception as error:  # whatever it is, it is not shared
            self._violate(Count.SHARE_MISSING, story, repr(error))
            return
        if story.shared_with not in shared_with:
            self._violate(Count.SHARE_MISSING, story, f"it is shared with {sorted(shared_with)}")

    def _measure_loss(self, story: Story, kept: int) -> None:
        """Measure how long before the cut the first byte had been printed that is gone."""
        if story.ended_ns <= self._cut.time_ns or not story.arrivals:
            return
        number = bisect.bisect_right(story.arrivals, kept, key=lambda arrival: arrival[0])
        lost_since = story.arrivals[number][1] if number < len(story.arrivals) else self._cut.time_ns
        seconds = max(0, self._cut.time_ns - lost_since) / 1e9
        self._verdict.lost_seconds.append(seconds)
        if seconds > _MOST_LOST_SECONDS:
            self._violate(Count.LATE, story, f"{seconds:.1f} s")

    def _violate(self, count: Count, story: Story, sentence: str) -> None:
        self._verdict.violate(count, f"{story.kind} {story.id} at {self._cut}: {sentence}")


def _find_wrong(printed: bytes, piece: Piece) -> str | None:
    """Return what is wrong about the bytes of a piece; None if they are those that were printed."""
    right = printed[piece.stream_offset : piece.stream_offset + len(piece.data)]
    if piece.data == right:
        return None
    pairs = enumerate(zip(piece.data, right, strict=False))
    at = next((number for number, (got, wanted) in pairs if got != wanted), len(right))
    blank = piece.data.count(0, at)
    return f"from byte {piece.offset + at} on, {len(piece.data) - at} bytes, {blank} of them NUL"


def _shorten(error: Unreadable) -> str:
    """Return what is said about a damaged job, from the name of its file on."""
    return str(error).rpartition("/jobs/")[2]
