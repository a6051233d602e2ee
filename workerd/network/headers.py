"""Decoding header blocks, so that headers that are too long cost their call and not the connection.

h2 stops decoding when a header list is over its limit, and ends the connection, because a block changes the state of
the compression for all later blocks (RFC 9113 §10.5.1). Here the block is decoded to its end and the headers are left
out, so that only the call is refused. A block that is many times too long still ends the connection, which bounds the
time and memory of decoding.
"""

from collections.abc import Iterable

from hpack.exceptions import OversizedHeaderListError
from hpack.hpack import Decoder
from hpack.struct import HeaderTuple
from hpack.table import table_entry_size

_MOST_TIMES = 4  # the limit
_NEEDED = frozenset({b"content-type", b"te"})


class TooLong(HeaderTuple):
    """The size of a whole list whose headers were left out, and the limit. No peer can send one."""

    __slots__ = ()


class HeaderDecoder(Decoder):
    """Decodes the header blocks of one connection.

    Attributes:
        max_header_list_size: the size of a list that ends the connection: a multiple of the limit for one call, to
            which it is set.
    """

    @property
    def max_header_list_size(self) -> int:  # noqa: D102
        return self._limit * _MOST_TIMES

    @max_header_list_size.setter
    def max_header_list_size(self, limit: int) -> None:
        self._limit = limit

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Decode a block; of a list over the limit only what makes it a request is returned, and a `TooLong`.

        Raises:
            OversizedHeaderListError: it is so large that the connection has to end.
        """
        if len(data) > self.max_header_list_size:
            raise OversizedHeaderListError(f"a header block has {len(data)} bytes")
        headers = list(super().decode(data, raw))
        size = sum(table_entry_size(name, value) for name, value in headers)  # RFC 9113 §6.5.2
        if size <= self._limit:
            return headers
        needed = [pair for pair in headers if pair[0].startswith(b":") or pair[0] in _NEEDED]
        return [*needed, TooLong(b"%d" % size, b"%d" % self._limit)]
