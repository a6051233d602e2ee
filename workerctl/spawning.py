"""What `spawn` and `run` share: the options that describe a job, and the request that they make."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from worker_api.worker.v1 import SpawnRequest

from workerctl.durations import read_seconds, to_duration
from workerctl.errors import UsageInvalid
from workerctl.parameters import split_at_commas
from workerctl.terminal import print_line


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What a command line says of a job in options; the program and its arguments may stand after `--` instead."""

    program_path: Annotated[
        str, Parameter(help="The program: an absolute path, or a name in the job's PATH.", show_default=False)
    ] = ""
    args: Annotated[
        list[str] | None,
        Parameter(
            converter=split_at_commas,
            allow_leading_hyphen=True,
            negative=(),
            n_tokens=1,
            help="Arguments, split at commas; may be repeated. Use -- for arguments with commas.",
        ),
    ] = None
    envs: Annotated[
        list[str] | None,
        Parameter(
            converter=split_at_commas,
            negative=(),
            n_tokens=1,
            help="Environment variables NAME=VALUE, split at commas; may be repeated.",
        ),
    ] = None
    working_directory: Annotated[
        str,
        Parameter(
            help="The absolute path to start in. [default: the home directory of the account it runs as]",
            show_default=False,
        ),
    ] = ""
    name: Annotated[str, Parameter(help="A label to find the job by.", show_default=False)] = ""
    timeout_seconds: Annotated[
        float | None,
        Parameter(
            converter=read_seconds,
            help="Seconds, or a time such as 15m, after which the job is stopped. [default: never]",
        ),
    ] = None
    max_log_bytes: Annotated[
        int,
        Parameter(
            help="What the log may take of the disk; beyond it the oldest output goes. [default: what the daemon says]",
            show_default=False,
        ),
    ] = 0
    run_as: Annotated[
        str,
        Parameter(
            help="The system account to run as, by name. [default: what the daemon says]",
            show_default=False,
        ),
    ] = ""

    def request(self, command: Sequence[str], request_key: str = "") -> SpawnRequest:
        """Make the request.

        Args:
            command: the program and its arguments, as they stand after `--`.
            request_key: what makes a repeated spawn find the first job; empty for one that the client makes up.

        Raises:
            UsageInvalid: there is no program, or there are two, or a variable has no value.
        """
        if not command and not self.program_path:
            raise UsageInvalid("say what to run: give the program and its arguments after --")
        if command and (self.program_path or self.args):
            raise UsageInvalid("give the program and its arguments both after --, or with --program-path and --args")
        if self.max_log_bytes < 0:
            raise UsageInvalid("--max-log-bytes is a number of bytes, zero or more")
        program, *arguments = command or [self.program_path, *(self.args or ())]
        for text in (program, *arguments, *(self.envs or ()), self.working_directory, self.name, self.run_as):
            if any("\udc80" <= character <= "\udcff" for character in text):  # PEP 383
                raise UsageInvalid(f"{text!r} is not UTF-8, which the contract needs")
        return SpawnRequest(
            program=program,
            args=arguments,
            envs=dict(map(_pair, self.envs or ())),
            working_directory=self.working_directory,
            name=self.name,
            timeout=None if self.timeout_seconds is None else to_duration("--timeout-seconds", self.timeout_seconds),
            request_key=request_key,
            max_log_bytes=self.max_log_bytes,
            run_as=self.run_as,
        )


def print_started(job_id: str, line: str) -> None:
    """Print the line that tells of a job that was started.

    Raises:
        OSError: it cannot be written; a note tells the job.
    """
    try:
        print_line(line)
    except OSError as error:
        error.add_note(f"job {job_id} was started, but this could not be written to standard output")
        raise


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageInvalid(f"--envs {text!r} is not NAME=VALUE (commas separate variables)")
    return name, value
