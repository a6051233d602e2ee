"""What each status of a call becomes."""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from workerctl.errors import from_grpc, sentence
from workerctl.exit_codes import ExitCode


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (Status.INVALID_ARGUMENT, ExitCode.USAGE),
        (Status.UNIMPLEMENTED, ExitCode.FAILED),
        (Status.INTERNAL, ExitCode.FAILED),
        (Status.UNAVAILABLE, ExitCode.FAILED),
    ],
)
def test_a_status_has_an_exit_code(status: Status, code: ExitCode) -> None:
    assert from_grpc(GRPCError(status, "no")).exit_code == code


def test_who_calls_what_the_daemon_does_not_know_is_told_to_restart_it() -> None:
    assert "restart it" in str(from_grpc(GRPCError(Status.UNIMPLEMENTED, "this daemon has no /a.v1.A/B")))


@pytest.mark.parametrize(
    ("subject", "said", "told"),
    [
        ("max_log_bytes", "max_log_bytes is less than 4194304", "--max-log-bytes is less than 4194304"),
        ("working_directory", "working_directory 'rel' is not", "--working-directory 'rel' is not"),
        ("rights", "a certificate cannot be narrowed so: rights", "a certificate cannot be narrowed so: rights"),
        ("depth", "depth is too much", "depth is too much"),
    ],
    ids=["one", "another", "not first", "a plugin's"],
)
def test_a_field_that_is_wrong_is_told_as_its_option_to_people_alone(subject: str, said: str, told: str) -> None:
    detail = ErrorDetail(reason=ErrorReason.ARGUMENT_INVALID, subject=subject)
    failure = from_grpc(GRPCError(Status.INVALID_ARGUMENT, said, [detail]))
    assert (str(failure), sentence(failure)) == (said, told)
