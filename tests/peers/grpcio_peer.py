"""A client of which nothing is ours but the contract and the certificates, and a job for it to read."""

from dataclasses import dataclass
from typing import Any

SECONDS = 60
STDOUT_BYTES, STDERR_BYTES = 3_000_000, 1_000_001


@dataclass(frozen=True)
class Peer:
    """A connection, the generated messages, and the generated stub."""

    channel: Any
    pb: Any
    stub: Any

    def call(self, rpc: str, request: Any) -> Any:
        """Make a call; one that answers with a stream gives a list."""
        answer = getattr(self.stub, rpc)(request, timeout=SECONDS)
        return list(answer) if rpc == "StreamLog" else answer

    def call_raw(self, rpc: str, request: bytes) -> list[bytes]:
        """Make a call with bytes that grpcio has not made itself."""
        path = f"/worker.v1.WorkerService/{rpc}"
        if rpc == "StreamLog":
            return list(self.channel.unary_stream(path)(request, timeout=SECONDS))
        return [self.channel.unary_unary(path)(request, timeout=SECONDS)]

    def spawn(self, program: str, *args: str, **fields: Any) -> str:
        """Start a job."""
        return str(self.call("Spawn", self.pb.SpawnRequest(program=program, args=args, **fields)).job_id)

    def events(self, job_id: str, **fields: Any) -> list[Any]:
        """Read a log as far as it goes."""
        return list(self.call("StreamLog", self.pb.StreamLogRequest(job_id=job_id, **fields)))

    def ended(self, job_id: str) -> Any:
        """Wait for a job's end and describe the job."""
        self.events(job_id, anchor=self.pb.LOG_ANCHOR_NOW, follow=True)
        return self.call("Status", self.pb.StatusRequest(job_id=job_id)).job


@dataclass(frozen=True)
class Printed:
    """An ended job, what it wrote to each stream, and all of it in the order in which it reached the daemon."""

    job_id: str
    stdout: bytes
    stderr: bytes
    combined: bytes
