"""Decoding and encoding header blocks within limits that the peer does not set.

Headers that are too long cost their call and not the connection.
h2 stops decoding when a header list is over its limit, and ends the connection, because a block changes the state of
the compression for all later blocks (RFC 9113 §10.5.1). Here the block is decoded to its end and the headers are left
out, so that only the call is refused. A block that is many times too long still ends the connection, which bounds the
time and memory of decoding.

Of the headers of a call that may be sent, only those that the daemon uses are kept: as Python objects, many small
headers take many times the bytes that the limit counts.

The encoder searches its table one entry after another (`HeaderTable.search`), and h2 gives it the size that the peer
announces (RFC 9113 §6.5.2, SETTINGS_HEADER_TABLE_SIZE).
"""

from collections.abc import Iterable

from grpclib.metadata import decode_metadata
from h2.events import Event, RequestReceived, TrailersReceived
from hpack.exceptions import OversizedHeaderListError
from hpack.hpack import Decoder, Encoder
from hpack.struct import Header, HeaderTuple
from hpack.table import HeaderTable, table_entry_size

USERNAME = "workerd-username"  # whom a call is made for
TIMEOUT, CONTENT_TYPE, ENCODING = "grpc-timeout", "content-type", "grpc-encoding"
_USED = frozenset({":method", ":path", "te", USERNAME, TIMEOUT, CONTENT_TYPE, ENCODING})
_MOST_OF_A_NAME = 2  # which suffices to see that a header was sent more than once
_VARYING = frozenset({b"grpc-message", b"grpc-status-details-bin"})
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


class HeaderEncoder(Encoder):
    """Encodes the header blocks of one connection, with a table of the initial size or less.

    A peer permits a size; the encoder chooses one up to that (RFC 7541 §4.2). Headers that differ from answer to answer
    are not added to the table (RFC 7541 §6.2.3).
    """

    @property
    def header_table_size(self) -> int:  # noqa: D102
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, size: int) -> None:
        size = min(size, HeaderTable.DEFAULT_SIZE)
        if size != self.header_table.maxsize:
            self.header_table.maxsize = size
            # Only the smallest and the last size are sent (RFC 7541 §4.2), however often the peer changes it.
            self.table_size_changes = sorted({min([*self.table_size_changes, size]), size})

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        """Encode a header."""
        return super().add(to_add, sensitive or to_add[0] in _VARYING, huffman)


def drop_unused(events: list[Event]) -> list[Event]:
    """Drop the headers of calls that the daemon does not use, and all trailers.

    Returns:
        The events.
    """
    for event in events:
        if isinstance(event, RequestReceived):
            event.headers = _used(event.headers or [])
        elif isinstance(event, TrailersReceived):
            event.headers = []
    return events


def is_invalid_binary(name: str, value: str) -> bool:
    """Return whether a header is binary metadata that is not base64."""
    if not name.endswith("-bin"):
        return False
    try:
        decode_metadata([(name, value)])
    except ValueError:
        return True
    return False


def _used(headers: list[Header]) -> list[Header]:
    """Return the headers that are used, and the first that its call is refused for."""
    used, counts, is_refused = list[Header](), dict[str, int](), False
    for header in headers:
        name, value = str(header[0]), str(header[1])
        if isinstance(header, TooLong):
            used.append(header)
        elif name in _USED:
            counts[name] = counts.get(name, 0) + 1
            if counts[name] <= _MOST_OF_A_NAME:
                used.append(header)
        elif not is_refused and is_invalid_binary(name, value):
            is_refused = True
            used.append(header)
    return used
