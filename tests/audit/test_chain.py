"""How a line is made and bound to the one before."""

import hashlib
import json
import string
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import (
    GENESIS,
    MAX_LINE_BYTES,
    Head,
    LineInvalid,
    format_head,
    make_line,
    opens_line,
    parse_head,
    read_line,
)
from tests.audit.trails import TIME

unhurried = settings(deadline=None)
TEXTS = st.text('abé😀\n"\\\x00\x7f\u202e ', max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda values: st.lists(values) | st.dictionaries(TEXTS, values),
    max_leaves=8,
)
NAMES = st.text(string.ascii_lowercase + "_", min_size=1).filter(
    lambda name: name not in ("seq", "time", "prev", "hash", "event")
)
EVENTS = st.dictionaries(NAMES, VALUES, max_size=5)


@unhurried
@given(EVENTS)
def test_a_line_says_what_it_was_told_and_where_it_stands(event: dict[str, object]) -> None:
    before = Head(41, "ab" * 32)
    line, head = make_line({"event": "decision", **event}, before, TIME)
    link = read_line(line)
    assert (link.seq, link.time, link.prev, link.hash, link.event) == (42, TIME, before.hash, head.hash, "decision")
    assert link.head == head
    said = json.loads(line)
    assert {name: said[name] for name in event} == event
    assert line.count(b"\n") == 1 and line.isascii()


@unhurried
@given(EVENTS, st.data())
def test_a_line_with_any_byte_changed_inserted_or_deleted_is_none(
    event: dict[str, object], data: st.DataObject
) -> None:
    line, _ = make_line(event, GENESIS, TIME)
    place = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != line[place : place + 1]))
    changed = line[:place] + byte + line[place + 1 :]
    inserted = line[:place] + byte + line[place:]
    deleted = line[:place] + line[place + 1 :]
    for other in (changed, inserted, deleted, line + byte):
        with pytest.raises(LineInvalid):
            read_line(other)


def test_the_hash_is_that_of_the_line_without_it_for_anybody_who_computes_it() -> None:
    """As the documentation says it is done, and with nothing of ours."""
    line, head = make_line({"event": "decision", "args": ["ü"]}, GENESIS, TIME)
    fields = json.loads(line)
    assert fields.pop("hash") == head.hash
    assert hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest() == head.hash


@pytest.mark.parametrize("name", ["seq", "time", "prev", "hash"])
def test_an_event_cannot_have_what_the_line_has_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_line({name: 1}, GENESIS, TIME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_no_event(value: float) -> None:
    with pytest.raises(ValueError):
        make_line({"value": value}, GENESIS, TIME)


def test_bytes_that_are_no_text_are_told_in_some_way() -> None:
    line, _ = make_line({"program": b"/bin/\xff".decode(errors="surrogateescape"), "args": ["😀"]}, GENESIS, TIME)
    read_line(line)
    said = json.loads(line)
    assert said["program"] == r"/bin/\udcff" and said["args"] == ["😀"]


@unhurried
@given(
    st.recursive(TEXTS | TEXTS.map(lambda text: text * 500), lambda some: st.lists(some) | st.dictionaries(TEXTS, some))
)
def test_no_line_is_longer_than_a_line_may_be(value: object) -> None:
    event = {"event": "decision", "user": "acrimon", "request": [value, "x" * MAX_LINE_BYTES]}
    line, _ = make_line(event, GENESIS, TIME)
    assert len(line) <= MAX_LINE_BYTES
    said = json.loads(line)
    read_line(line)
    assert (said["event"], said["user"]) == ("decision", "acrimon")
    whole = json.dumps(event, separators=(",", ":")).encode()
    assert said["cut_from_bytes"] == len(whole) and said["cut_from_sha256"] == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("piece", ["x", "😀", "\x01", "\udcff"])
@pytest.mark.parametrize("count", [1, 40, 4000])
def test_who_asks_is_told_however_much_is_asked_for(piece: str, count: int) -> None:
    ann, root = {"id": "1aaaaaaa-1111-4111-8111-111111111111", "name": "😀" * 64}, {"id": "2" * 36, "name": "root"}
    request = {"program": "/bin/sh", "args": [piece * 300] * count, "envs": [piece * 300] * count, "name": piece * 256}
    event = {"event": "decision", "user": ann, "actor": root, "request": request, "verdict": "deny", "policies": ["p"]}
    line, _ = make_line(event, GENESIS, TIME)
    read_line(line)
    assert len(line) <= MAX_LINE_BYTES
    said = json.loads(line)
    assert (said["user"], said["actor"], said["verdict"], said["policies"]) == (ann, root, "deny", ["p"])
    assert said["request"]["program"] == "/bin/sh" and said["request"]["args"]


@pytest.mark.parametrize("verdict_bytes", [2048, MAX_LINE_BYTES])
def test_an_event_of_any_size_is_cut_before_it_is_encoded(verdict_bytes: int) -> None:
    """What a line costs in memory does not depend on what was asked for."""
    request = {"right": "\0" * (8 << 20), "args": ["stop"] * (1 << 18), "x" * (1 << 20): 1}
    event = {"event": "decision", "user": "ann", "request": request}
    tracemalloc.start()
    try:
        line, _ = make_line(event, GENESIS, TIME, verdict_bytes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20 and len(line) <= verdict_bytes
    read_line(line)
    said = json.loads(line)
    assert said["user"] == "ann"
    if verdict_bytes == MAX_LINE_BYTES:
        assert said["request"]["right"] == "\0" * 256 + f"… ({8 << 20} characters)"
        assert said["request"]["args"] == ["stop"] * 32 + [f"… ({1 << 18} items)"]


def test_what_fills_a_line_goes_first() -> None:
    event = {"event": "e", "user": {"name": "ann"}, "plugin": {str(i): {"a": ["😀" * 300] * 300} for i in range(300)}}
    said = json.loads(make_line({**event, "more": [["x" * 300] * 300] * 300}, GENESIS, TIME)[0])
    assert said["user"] == {"name": "ann"} and "plugin" in said


@unhurried
@given(st.integers(0, 2**63), st.binary(min_size=32, max_size=32), st.data())
def test_a_head_is_read_as_it_was_written_and_not_with_any_byte_changed(
    seq: int, digest: bytes, data: st.DataObject
) -> None:
    head = Head(seq, digest.hex())
    written = format_head(head)
    assert parse_head(written) == head and len(written) == len(format_head(GENESIS))
    place = data.draw(st.integers(0, len(written) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != written[place : place + 1]))
    assert parse_head(written[:place] + byte + written[place + 1 :]) != head
    assert parse_head(written[:place] + written[place + 1 :]) is None
    assert parse_head(written + byte) is None


@unhurried
@given(st.integers(0, 400))
def test_what_a_line_begins_with_is_known_however_little_there_is_of_it(length: int) -> None:
    line, _ = make_line({"event": "decision"}, Head(41, "ab" * 32), TIME)
    assert opens_line(line[:length], 42)
    assert not opens_line(line[: max(9, length)], 43)
