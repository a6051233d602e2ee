"""What goes over the wire: messages, messages that were encoded already, and the details of errors."""

from dataclasses import dataclass
from typing import Any

from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from worker_api.google.protobuf import Any as AnyMessage
from worker_api.google.rpc import Status as StatusMessage

from workerd.wire import check


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message in its wire format, made without building the message."""

    data: bytes


class Codec(ProtoCodec):
    """Protocol buffers; what is `Encoded` passes through."""

    def encode(self, message: Any, message_type: Any) -> bytes:
        """Encode one message."""
        if type(message) is Encoded:
            return message.data
        return super().encode(message, message_type)

    def decode(self, data: bytes, message_type: Any) -> Any:
        """Decode one message, strictly: betterproto2 alone passes over what is cut off or of another type.

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
