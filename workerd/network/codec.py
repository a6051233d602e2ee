"""What goes over the wire: messages, messages that were encoded already, and the details of errors."""

from dataclasses import dataclass
from typing import Any

from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from worker_api.google.protobuf import Any as AnyMessage
from worker_api.google.rpc import Status as StatusMessage

from workerd.network.wire import check


@dataclass(frozen=True, slots=True)
class Encoded:
    """One or more messages of a stream as they go over the wire, each with its length before it."""

    data: bytes


class Codec(ProtoCodec):
    """Protocol buffers, strictly decoded."""

    def decode(self, data: bytes, message_type: Any) -> Any:
        """Decode one message: betterproto2 alone passes over what is cut off or of another type.

        Raises:
            ValueError: the bytes are no message of this type.
        """
        check(data, message_type)
        return super().decode(data, message_type)


class StatusDetailsCodec(StatusDetailsCodecBase):
    """Puts details into a google.rpc.Status, as gRPC's `grpc-status-details-bin` has them, without Google's library."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Encode the details of an error."""
        packed = [AnyMessage.pack(detail) for detail in details]
        return bytes(StatusMessage(code=status.value, message=message or "", details=packed))

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        """Not for servers."""
        raise NotImplementedError
