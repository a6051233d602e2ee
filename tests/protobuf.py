"""Protocol buffers as bytes, for messages that no library would write."""


def varint(value: int) -> bytes:
    """Encode a number; a negative one in two's complement."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def block(number: int, content: bytes) -> bytes:
    """Encode a field that has a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content
