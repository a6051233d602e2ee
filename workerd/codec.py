"""What goes over the wire: messages, messages that were encoded already, and the details of errors."""

from dataclasses import dataclass
from typing import Any

from grpclib.const import Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from worker_api.google.protobuf import Any as AnyMessage
from worker_api.google.rpc import Status as StatusMessage


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
        _check_fields(data)
        message = super().decode(data, message_type)
        try:
            message.SerializeToString()
        except Exception as error:  # a field holds what its type cannot
            raise ValueError(str(error)) from error
        return message


def _check_fields(data: bytes) -> None:
    """Walk the fields of a message (https://protobuf.dev/programming-guides/encoding, "Message Structure")."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        match tag & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(data, position)
                position += length
            case 5:
                position += 4
            case kind:
                raise ValueError(f"a field has the wire type {kind}")
    if position > len(data):
        raise ValueError("the last field is cut off")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("a number is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is longer than ten bytes")


class StatusDetailsCodec(StatusDetailsCodecBase):
    """Puts details into a google.rpc.Status, as gRPC's `grpc-status-details-bin` has them, without Google's library."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Encode the details of an error."""
        packed = [AnyMessage.pack(detail) for detail in details]
        return bytes(StatusMessage(code=status.value, message=message or "", details=packed))

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        """Not for servers."""
        raise NotImplementedError
