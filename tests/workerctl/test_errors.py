"""What each status of a call becomes."""

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from workerctl.errors import from_grpc
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
