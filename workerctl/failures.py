"""What grpclib and the network raise when a call fails, as the client's own errors."""

import ssl

from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.exceptions import ProtocolError

from workerctl.errors import ClientError, ConnectionLost, Refused, Unreachable, from_grpc
from workerctl.transport import WorkerChannel

FAILURES = (GRPCError, StreamTerminatedError, ProtocolError, OSError)
"""All that there is."""
_OF_ANOTHER_HOST = (62, 64)  # hostname and IP address mismatch: X509_STORE_CTX_get_error(3)


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
            advice = (
                "use a name that it has, or give it this one with `workerctl pki renew server --host NAME`"
                if error.verify_code in _OF_ANOTHER_HOST
                else "check --pki-dir"
            )
            return Refused(channel.endpoint, f"its certificate does not hold: {problem}: {advice}")
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):  # what OpenSSL takes the first bytes of anything else for
            return Refused(channel.endpoint, "what listens there does not speak TLS: is it another program's port?")
        case ssl.SSLError() if not isinstance(error, ssl.SSLEOFError):
            return Refused(channel.endpoint, f"TLS failed: {error.reason or error}")
        case OSError():  # asyncio has no words for a connection that was closed within the handshake
            problem = error.strerror or str(error) or "the connection was closed before anything was said"
            return Unreachable(channel.endpoint, f"{problem}: is workerd running there?")
