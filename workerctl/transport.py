"""The connection to a daemon. What reaches into grpclib's inside stands here and nowhere else.

- A connection that is lost says why: grpclib drops the reason, which for a certificate that the daemon refuses is the
  only thing that helps (in TLS 1.3 the client learns of it after its handshake is done: RFC 8446 §4.4.2.4).
- Frames that carry data are not formatted for a trace log that nobody reads: h2 does so for every frame that it
  receives (`H2Connection._receive_frame`), and hyperframe writes out all of a frame's bytes in hexadecimal for it.
- Details of errors are decoded without Google's protobuf library.
"""

import asyncio
import ssl
from asyncio import BaseTransport, Transport
from typing import Any, cast

from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import H2Protocol
from hyperframe.frame import DataFrame
from worker_api.google.rpc import Status as StatusMessage

_CLOSE_SECONDS = 1.0


def _describe_data_frame(frame: DataFrame) -> str:
    return f"{len(frame.data)} bytes"


DataFrame._body_repr = _describe_data_frame  # type: ignore[method-assign, assignment]


class StatusDetailsCodec(StatusDetailsCodecBase):
    """Takes details out of a google.rpc.Status."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Not for clients."""
        raise NotImplementedError

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        """Decode the details of an error."""
        del status, message
        return [detail.unpack() for detail in StatusMessage.FromString(data).details]


class _Protocol(H2Protocol):
    lost_because: BaseException | None = None
    heard = False

    def connection_made(self, transport: BaseTransport) -> None:
        self.transport = cast("Transport", transport)
        self.lost = asyncio.Event()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost_because = exc
        self.lost.set()
        super().connection_lost(exc)


class WorkerChannel(Channel):
    """A channel that remembers why its last connection was lost."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        super().__init__(
            host,
            port,
            ssl=tls,
            codec=ProtoCodec(),
            status_details_codec=StatusDetailsCodec(),
            config=Configuration(http2_connection_window_size=2**24, http2_stream_window_size=2**23),
        )
        self.endpoint = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._last: _Protocol | None = None

    def _protocol_factory(self) -> H2Protocol:
        self._last = _Protocol(Handler(), self._config, self._h2_config)
        return self._last

    async def aclose(self) -> None:
        """Close the connection, and wait until it is closed."""
        self.close()
        if self._last is not None and hasattr(self._last, "lost"):
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._last.lost.wait()
            except TimeoutError:
                self._last.transport.abort()
                await self._last.lost.wait()

    @property
    def refused(self) -> bool:
        """Whether the daemon closed the last connection without a word: it does not take the certificate."""
        return self._last is not None and hasattr(self._last, "lost") and not self._last.heard

    @property
    def lost_because(self) -> str:
        """Why the last connection was lost, for people."""
        reason = None if self._last is None else self._last.lost_because
        if self.refused:
            said = f" ({(reason.reason or '').lower().replace('_', ' ')})" if isinstance(reason, ssl.SSLError) else ""
            return f"it refused the certificate{said}: is it expired, or of another authority?"
        return "the connection was closed" if reason is None else f"the connection was lost: {reason}"
