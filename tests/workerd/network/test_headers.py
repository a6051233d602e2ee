"""Header blocks are encoded such that every peer can decode them, with a table that no peer enlarges."""

from hpack import Decoder
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from workerd.network.headers import HeaderEncoder

SIZES = st.sampled_from([0, 40, 100, 4095, 4096, 4097, 2**32 - 1])
NAMES = st.sampled_from(["grpc-status", "content-type", "grpc-message", "grpc-status-details-bin"])
BLOCKS = st.lists(st.tuples(NAMES, st.text("ab", max_size=3)), max_size=4)


@given(st.lists(st.tuples(st.lists(SIZES, max_size=4), BLOCKS), max_size=8))
def test_what_is_encoded_is_decoded_whatever_sizes_the_peer_permits(
    steps: list[tuple[list[int], list[tuple[str, str]]]],
) -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    for sizes, block in steps:
        for size in sizes:
            encoder.header_table_size = size
            decoder.max_allowed_table_size = size
        assert [(str(name), str(value)) for name, value in decoder.decode(encoder.encode(block))] == block
        assert encoder.header_table_size <= min([HeaderTable.DEFAULT_SIZE, decoder.max_allowed_table_size])
        assert {*encoder.header_table.dynamic_entries} == {*decoder.header_table.dynamic_entries}


def test_headers_that_vary_are_not_added_to_the_table() -> None:
    encoder = HeaderEncoder()
    encoder.encode([("grpc-status", "5"), ("grpc-message", "a job"), ("grpc-status-details-bin", "AAAA")])
    assert [*encoder.header_table.dynamic_entries] == [(b"grpc-status", b"5")]


def test_sizes_that_change_often_are_announced_in_short() -> None:
    encoder = HeaderEncoder()
    for size in range(4000):
        encoder.header_table_size = size
    assert len(encoder.encode([(":status", "200")])) < 10
