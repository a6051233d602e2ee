"""What is on a disk after a cut: all that a flush had promised, and nothing that was never written."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.cuts import Cut, Replay, Variant, choose_cuts
from tests.power.recorder import Kind, Recording

_BLOCKS = 16
_BLOCK_BYTES = 512


def write_log(path: Path, source: random.Random, count: int) -> None:
    """Write records of blocks that each are full of the number of their record."""
    with path.open("wb") as file:
        for number in range(1, count + 1):
            if source.random() < 0.2:
                file.write(struct.pack("=4Q", Kind.FLUSH, 0, 0, number))
            else:
                offset = source.randrange(_BLOCKS) * _BLOCK_BYTES
                file.write(struct.pack("=4Q", Kind.WRITE, offset, _BLOCK_BYTES, number))
                file.write(bytes([number]) * _BLOCK_BYTES)


@pytest.fixture
def recording(tmp_path: Path, seed: int) -> Iterator[Recording]:
    """The records of a small disk."""
    write_log(tmp_path / "log", random.Random(seed), 200)
    (tmp_path / "base").write_bytes(bytes(_BLOCKS * _BLOCK_BYTES))
    recording = Recording(tmp_path / "log")
    yield recording
    recording.close()


def allowed_blocks(recording: Recording, count: int) -> dict[int, set[int]]:
    """Return which records each block may be of when so many had taken effect; 0 is the block as it was at first."""
    allowed: dict[int, set[int]] = {block: {0} for block in range(_BLOCKS)}
    latest = dict.fromkeys(range(_BLOCKS), 0)
    for number, record in enumerate(recording.records[:count], start=1):
        if record.kind is Kind.FLUSH:
            allowed = {block: {latest[block]} for block in allowed}
        else:
            block = record.offset // _BLOCK_BYTES
            latest[block] = number
            allowed[block].add(number)
    return allowed


def test_each_block_is_what_a_flush_promised_or_what_was_written_since(
    recording: Recording, tmp_path: Path, seed: int
) -> None:
    replay = Replay(recording, tmp_path / "base")
    for cut in choose_cuts(recording, [], 0, 60, seed):
        replay.make(cut, tmp_path / "cut")
        data = (tmp_path / "cut").read_bytes()
        for block, allowed in allowed_blocks(recording, cut.count).items():
            found = set(data[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES])
            assert len(found) == 1 and found <= allowed, f"{cut}, block {block}"


def test_a_prefix_has_every_write_before_the_cut(recording: Recording, tmp_path: Path) -> None:
    count = len(recording.records)
    Replay(recording, tmp_path / "base").make(Cut(count, 0, 0, 0, Variant.PREFIX, 0), tmp_path / "cut")
    expected = bytearray(_BLOCKS * _BLOCK_BYTES)
    for record in recording.records:
        expected[record.offset : record.offset + record.length] = recording.data(record)
    assert (tmp_path / "cut").read_bytes() == expected


def test_half_of_the_cuts_are_right_after_something_was_told(recording: Recording, seed: int) -> None:
    told = [record.end - record.length // 2 for record in recording.records[10:100]]
    cuts = choose_cuts(recording, told, recording.records[9].end, 40, seed)
    assert len(cuts) == 40
    assert [cut.count for cut in cuts] == sorted(cut.count for cut in cuts)
    assert all(cut.count >= 10 for cut in cuts)
    ends = {recording.records[number].end for number in range(10, 100)}
    assert sum(cut.position in ends for cut in cuts) >= 20
