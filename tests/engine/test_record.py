"""The records of an index."""

from hypothesis import given
from hypothesis import strategies as st

from workerd.engine.job import Stream
from workerd.engine.record import MAX_LENGTH, RECORD_SIZE, Kind, Record, pack, unpack, unpack_many

NUMBERS = st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    stream=st.sampled_from([None, *Stream]),
    offset=NUMBERS,
    length=st.integers(0, MAX_LENGTH),
    stream_offset=NUMBERS,
    time_ns=NUMBERS,
)


@given(RECORDS)
def test_a_record_survives_packing(record: Record) -> None:
    packed = pack(record)
    assert len(packed) == RECORD_SIZE
    assert unpack(packed) == record


@given(RECORDS, st.integers(0, RECORD_SIZE - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(record: Record, position: int, change: int) -> None:
    packed = bytearray(pack(record))
    packed[position] ^= change
    assert unpack(bytes(packed)) is None


@given(st.lists(RECORDS, max_size=6), st.data())
def test_records_are_read_up_to_the_first_that_is_cut(records: list[Record], data: st.DataObject) -> None:
    whole = b"".join(map(pack, records))
    cut = data.draw(st.integers(0, len(whole)))
    assert list(unpack_many(whole[:cut])) == records[: cut // RECORD_SIZE]


def test_the_format_on_disk_does_not_change() -> None:
    record = Record(Kind.OUTPUT, Stream.STDERR, 1, 2, 3, 4)
    assert pack(record).hex() == (
        "02020000" + "02000000" + "0100000000000000" + "0300000000000000" + "0400000000000000" + "432dbe9defb81a52"
    )
