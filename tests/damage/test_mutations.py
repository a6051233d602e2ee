"""The operations on bytes do what their names say."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.damage.mutations import ON_BYTES, Operation, change, differing_range

contents = st.binary(max_size=3000)
seeds = st.integers(0, 2**32)


@given(st.sampled_from(sorted(ON_BYTES)), contents, seeds)
def test_a_change_changes_something_and_repeats_with_its_seed(operation: Operation, data: bytes, seed: int) -> None:
    changed = change(operation, data, Random(seed))
    assert changed is None or changed[0] != data
    assert changed == change(operation, data, Random(seed))


@given(st.sampled_from(sorted(ON_BYTES)), st.binary(min_size=64, max_size=300).filter(lambda data: len(set(data)) > 9))
def test_bytes_with_content_can_always_be_changed(operation: Operation, data: bytes) -> None:
    assert change(operation, data, Random(0)) is not None


@given(contents, seeds)
def test_each_operation_keeps_what_it_does_not_touch(data: bytes, seed: int) -> None:
    sizes = {}
    for operation in sorted(ON_BYTES):
        if (changed := change(operation, data, Random(seed))) is not None:
            sizes[operation] = len(changed[0]) - len(data)
            start, end = differing_range(data, changed[0])
            assert data[:start] == changed[0][:start]
            match operation:
                case Operation.FLIP_BIT:
                    assert end == start + 1
                    assert (data[start] ^ changed[0][start]).bit_count() == 1
                case Operation.FLIP_BYTE:
                    assert end == start + 1
                case Operation.ZERO:
                    assert not changed[0][start] and not changed[0][end - 1]
                case Operation.SWAP_RANGES:
                    assert sorted(changed[0]) == sorted(data)
                case Operation.TRUNCATE | Operation.APPEND:
                    assert start == end == min(len(data), len(changed[0]))
    assert all(size == 0 for operation, size in sizes.items() if operation not in ("truncate", "append garbage"))
    assert sizes.get(Operation.TRUNCATE, -1) < 0 < sizes.get(Operation.APPEND, 1)


@given(contents, contents)
def test_the_differing_range_is_all_that_must_be_written(before: bytes, after: bytes) -> None:
    start, end = differing_range(before, after)
    size = min(len(before), len(after))
    assert before[:start] + after[start:end] + before[end:size] == after[:size]
