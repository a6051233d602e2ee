"""What grpclib and the network raise when a call fails, as the client's own errors."""

import ssl
from datetime import datetime

from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import ProtocolError

from workerctl.errors import ClientError, ConnectionLost, NotAuthenticated, Refused, Unreachable, from_grpc
from workerctl.transport import WorkerChannel, is_not_authenticated

FAILURES = (GRPCError, StreamTerminatedError, ProtocolError, OSError)
"""All that there is."""
# X509_STORE_CTX_get_error(3):
_NOT_YET_VALID, _EXPIRED = 9, 10
_OF_ANOTHER_HOST = (62, 64)  # hostname and IP address mismatch


def translate(
    error: GRPCError | StreamTerminatedError | ProtocolError | OSError, channel: WorkerChannel
) -> ClientError:
    """Turn one of `FAILURES` into the client's own error."""
    match error:
        case GRPCError():
            return from_grpc(error)
        case StreamTerminatedError() | ProtocolError():
            return (Refused if channel.refused else ConnectionLost)(channel.endpoint, channel.lost_because)
        case ssl.SSLCertVerificationError():
            problem = error.verify_message.rstrip(".")
            return NotAuthenticated(
                channel.endpoint, f"its certificate does not hold: {problem}: {_advice(error.verify_code)}"
            )
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):  # what OpenSSL takes the first bytes of anything else for
            return NotAuthenticated(
                channel.endpoint, "what listens there does not speak TLS: is it another program's port?"
            )
        case ssl.SSLError() if is_not_authenticated(error):
            return NotAuthenticated(channel.endpoint, f"TLS failed: {error.reason or error}")
        case OSError():  # asyncio has no words for a connection that was closed within the handshake
            problem = error.strerror or str(error) or "the connection was closed before anything was said"
            return Unreachable(channel.endpoint, f"{problem}: is workerd running there?")


def _advice(verify_code: int) -> str:
    """Return what to do about a daemon's certificate that OpenSSL does not accept."""
    clock = f"this machine's clock ({datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z})"
    if verify_code == _NOT_YET_VALID:
        return f"a clock is wrong: {clock}, or that of the machine where it was issued"
    if verify_code == _EXPIRED:
        return f"renew it with `workerctl pki renew server` where it was issued, unless {clock} is wrong"
    if verify_code in _OF_ANOTHER_HOST:
        return "use a name that it has, or give it this one with `workerctl pki renew server --host NAME`"
    return "check --pki-dir"
