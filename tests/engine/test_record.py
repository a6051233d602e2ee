"""The records of an index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.engine.job import Stream
from workerd.engine.record import MAX_LENGTH, RECORD_SIZE, CheckedCodec, Codec, Kind, OldCodec, Record, checksum

JOB, OTHER = "00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000001"
CODECS = (CheckedCodec(JOB), OldCodec())
NUMBERS = st.integers(0, 2**64 - 1)
PLACES = st.integers(1, 2**40)
CHECKED = st.builds(
    Record,
    kind=st.sampled_from([Kind.OUTPUT, Kind.END]),
    stream=st.sampled_from([None, *Stream]),
    offset=NUMBERS,
    length=st.integers(0, MAX_LENGTH),
    stream_offset=NUMBERS,
    time_ns=NUMBERS,
    data=st.integers(0, 2**32 - 1),
)
OLD = st.builds(
    Record,
    kind=st.sampled_from(Kind),
    stream=st.sampled_from([None, *Stream]),
    offset=NUMBERS,
    length=st.integers(0, MAX_LENGTH),
    stream_offset=NUMBERS,
    time_ns=NUMBERS,
)
HEADERS = st.builds(
    Record,
    kind=st.just(Kind.HEADER),
    stream=st.none(),
    offset=NUMBERS,
    length=st.integers(0, MAX_LENGTH),
    stream_offset=NUMBERS,
    time_ns=NUMBERS,
)


def unpack(codec: Codec, data: bytes, number: int) -> Record | None:
    """Decode one record."""
    return next(codec.unpack_many(data, number), None)


@given(CHECKED, PLACES)
def test_a_record_survives_packing(record: Record, number: int) -> None:
    codec = CheckedCodec(JOB)
    packed = codec.pack(number, record)
    assert len(packed) == RECORD_SIZE
    assert unpack(codec, packed, number) == record
    fields = record.kind, record.stream or 0, record.offset, record.length, record.stream_offset, record.time_ns
    assert codec.pack_fields(number, *fields, record.data or 0) == packed


@given(OLD, PLACES)
def test_a_record_of_an_older_format_survives_packing(record: Record, number: int) -> None:
    packed = OldCodec().pack(number, record)
    assert len(packed) == RECORD_SIZE
    assert unpack(OldCodec(), packed, number) == record


@given(HEADERS)
def test_every_version_reads_the_header_of_every_format(header: Record) -> None:
    assert CheckedCodec(JOB).pack(0, header) == OldCodec().pack(0, header)
    for codec in (CheckedCodec(JOB), CheckedCodec(OTHER), OldCodec()):
        assert unpack(codec, OldCodec().pack(0, header), 0) == header


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@given(record=CHECKED, number=PLACES, position=st.integers(0, RECORD_SIZE - 1), change=st.integers(1, 255))
def test_any_changed_byte_is_noticed(codec: Codec, record: Record, number: int, position: int, change: int) -> None:
    packed = bytearray(codec.pack(number, record))
    packed[position] ^= change
    assert unpack(codec, bytes(packed), number) is None


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@given(header=HEADERS, position=st.integers(0, RECORD_SIZE - 1), change=st.integers(1, 255))
def test_any_changed_byte_of_a_header_is_noticed(codec: Codec, header: Record, position: int, change: int) -> None:
    packed = bytearray(codec.pack(0, header))
    packed[position] ^= change
    assert unpack(codec, bytes(packed), 0) is None


@given(CHECKED, PLACES, PLACES)
def test_a_record_of_another_place_or_another_job_does_not_check(record: Record, number: int, other: int) -> None:
    packed = CheckedCodec(JOB).pack(number, record)
    assert (unpack(CheckedCodec(JOB), packed, other) is not None) == (number == other)
    assert unpack(CheckedCodec(OTHER), packed, number) is None
    assert unpack(OldCodec(), packed, number) is None


@given(st.lists(CHECKED, max_size=6), HEADERS, st.data())
def test_records_are_read_up_to_the_first_that_is_cut(
    records: list[Record], header: Record, data: st.DataObject
) -> None:
    codec = CheckedCodec(JOB)
    all_of_them = [header, *records]
    whole = b"".join(codec.pack(number, record) for number, record in enumerate(all_of_them))
    first = data.draw(st.integers(0, len(records)))
    cut = data.draw(st.integers(first * RECORD_SIZE, len(whole)))
    read = list(codec.unpack_many(whole[first * RECORD_SIZE : cut], first))
    assert read == all_of_them[first : cut // RECORD_SIZE]


@given(st.lists(OLD, max_size=6), st.data())
def test_records_of_an_older_format_are_read_up_to_the_first_that_is_cut(
    records: list[Record], data: st.DataObject
) -> None:
    whole = b"".join(OldCodec().pack(number, record) for number, record in enumerate(records))
    cut = data.draw(st.integers(0, len(whole)))
    assert list(OldCodec().unpack_many(whole[:cut], 0)) == records[: cut // RECORD_SIZE]


def test_the_formats_on_disk_do_not_change() -> None:
    fields = "02020000" + "02000000" + "0100000000000000" + "0300000000000000" + "0400000000000000"
    record = Record(Kind.OUTPUT, Stream.STDERR, 1, 2, 3, 4)
    assert OldCodec().pack(7, record).hex() == fields + "432dbe9defb81a52"
    record = Record(Kind.OUTPUT, Stream.STDERR, 1, 2, 3, 4, checksum(b"ab"))
    assert CheckedCodec(JOB).pack(7, record).hex() == fields + "5c73d524" + "2932bba3"
    header = Record(Kind.HEADER, None, 3, CheckedCodec(JOB).tie, 0, 4)
    assert CheckedCodec(JOB).pack(0, header).hex() == (
        "01000000" + "c7e2683f" + "0300000000000000" + "0000000000000000" + "0400000000000000" + "f422c5e6e95b8069"
    )
