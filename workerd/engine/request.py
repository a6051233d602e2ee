"""What a caller asks for when it spawns a job, and what it may not ask for."""

import math
from collections.abc import Callable

import msgspec

from workerd.engine.account import own_account
from workerd.engine.errors import InvalidArgument, quote
from workerd.engine.job import DEFAULT_GRACE_SECONDS, Account, JobSpec, User
from workerd.engine.storage import MIN_LOG_BYTES, Storage

MAX_LABEL_BYTES = 256
MAX_PATH_BYTES = 4095  # PATH_MAX without its NUL, limits.h


def check_label(field: str, text: str) -> None:
    """Check that a text is no longer than a label may be.

    Raises:
        InvalidArgument: naming the field.
    """
    if len(text.encode()) > MAX_LABEL_BYTES:
        raise InvalidArgument(field, f"is longer than {MAX_LABEL_BYTES} bytes")


class SpawnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A wish for a job. The fields are those of `JobSpec`.

    An empty working directory is the home of the account that the job runs as, a `max_log_bytes` of zero the engine's.
    `run_as` is that account's name, empty for the daemon's own.
    """

    owner: User
    program: str
    args: tuple[str, ...] = ()
    envs: dict[str, str] = {}
    working_directory: str = ""
    name: str = ""
    timeout_seconds: float | None = None
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    request_key: str = ""
    max_log_bytes: int = 0
    run_as: str = ""
    spawned_by: User | None = None

    def check(self, storage: Storage, can_limit_logs: Callable[[], bool]) -> None:
        """Check that a job could be so.

        Args:
            storage: what the engine allows.
            can_limit_logs: return whether the file system of the state directory can keep a log to a limit; called
                only for a request that has one.

        Raises:
            InvalidArgument: naming the first field that is impossible.
        """
        for field in ("program", "working_directory"):
            if len(getattr(self, field).encode()) > MAX_PATH_BYTES:
                raise InvalidArgument(field, f"is longer than {MAX_PATH_BYTES} bytes")
        if not self.program:
            raise InvalidArgument("program", "is empty: give an absolute path, or a name to look up in PATH")
        if "/" in self.program and not self.program.startswith("/"):
            raise InvalidArgument(
                "program", f"{quote(self.program)} must be an absolute path, or a name without slashes"
            )
        if self.working_directory and not self.working_directory.startswith("/"):
            raise InvalidArgument("working_directory", f"{quote(self.working_directory)} is not an absolute path")
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds < math.inf:
            raise InvalidArgument("timeout", "must be greater than zero and finite")
        if not 0 <= self.grace_seconds < math.inf:
            raise InvalidArgument("grace", "must be zero or greater, and finite")
        if 0 < self.max_log_bytes < MIN_LOG_BYTES:
            raise InvalidArgument("max_log_bytes", f"is less than {MIN_LOG_BYTES}, which a log needs at least")
        if 0 < storage.max_log_bytes < self.max_log_bytes:
            raise InvalidArgument("max_log_bytes", f"is more than the {storage.max_log_bytes} that this daemon allows")
        if self.max_log_bytes and not can_limit_logs():
            problem = "cannot be kept to: the file system of the daemon's state directory releases no part of a file"
            raise InvalidArgument("max_log_bytes", f"{problem}: give no limit, or choose another state directory")
        for name in self.envs:
            if not name or "=" in name:
                raise InvalidArgument("envs", f"{quote(name)} cannot be the name of an environment variable")
        for field in ("name", "request_key", "run_as"):
            check_label(field, getattr(self, field))
        texts = {
            "program": (self.program,),
            "args": self.args,
            "envs": (*self.envs, *self.envs.values()),
            "working_directory": (self.working_directory,),
            "run_as": (self.run_as,),
        }
        for field, values in texts.items():
            if any("\0" in value for value in values):
                raise InvalidArgument(field, "contains a NUL character, which the kernel cannot be told")

    def specify(self, job_id: str, created_ns: int, storage: Storage, account: Account | None = None) -> JobSpec:
        """Make the job's spec.

        Args:
            job_id: the job's.
            created_ns: when the request was accepted, nanoseconds since the epoch.
            storage: what the engine allows.
            account: what `run_as` stands for; None for the daemon's own.
        """
        return JobSpec(
            id=job_id,
            owner=self.owner,
            program=self.program,
            args=self.args,
            envs=self.envs,
            working_directory=self.working_directory or (account or own_account()).home,
            name=self.name,
            timeout_seconds=self.timeout_seconds,
            grace_seconds=self.grace_seconds,
            request_key=self.request_key,
            max_log_bytes=self.max_log_bytes or storage.max_log_bytes,
            durability=storage.durability,
            created_ns=created_ns,
            spawned_by=self.spawned_by,
            account=account,
        )
