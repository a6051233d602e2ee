"""What each error is on the wire."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from pki.errors import Missing
from workerd.engine.errors import (
    SHORTAGES,
    CatalogBusy,
    CatalogFailed,
    CatalogIncomplete,
    ResourcesExhausted,
    WatchesExhausted,
)
from workerd.errors import PolicyInvalid, shortage_of, to_grpc


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def catalog_failed(problem: str, code: int) -> Exception:
    """What the catalogue raises when the database fails with a code."""
    cause = sqlite3.OperationalError(problem)
    cause.sqlite_errorcode = code
    return caused_by(CatalogFailed(Path("catalog"), problem), cause)


NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
LACKS: list[Exception] = [
    *(OSError(number, os.strerror(number)) for number in SHORTAGES),
    MemoryError(),
    WatchesExhausted(),
    ResourcesExhausted("true", os.strerror(errno.EAGAIN)),
    catalog_failed("database or disk is full", sqlite3.SQLITE_FULL),
    catalog_failed("out of memory", sqlite3.SQLITE_NOMEM),
]


@pytest.mark.parametrize("error", LACKS, ids=repr)
def test_what_the_machine_lacks_is_said_to_be_exhausted_and_what_to_do(error: Exception) -> None:
    answer = to_grpc(error)
    assert answer.status is Status.RESOURCE_EXHAUSTED
    assert answer.details is not None
    (detail,) = answer.details
    assert isinstance(detail, ErrorDetail)
    assert detail.reason is ErrorReason.RESOURCE_EXHAUSTED
    assert answer.message is not None
    assert any(advice in answer.message for advice in ("raise", "make room", "give it more"))


def test_a_catalogue_that_somebody_holds_is_worth_another_try() -> None:
    answer = to_grpc(CatalogBusy(Path("catalog"), 2.0))
    assert answer.status is Status.UNAVAILABLE
    assert answer.details == [ErrorDetail(reason=ErrorReason.BUSY)]
    assert "another program has held it for 2 s: try again" in str(answer.message)


def test_a_catalogue_that_is_made_again_is_worth_another_try() -> None:
    """Also if what led to it was an error of SQLite's."""
    error = CatalogIncomplete(Path("catalog"))
    error.__cause__ = sqlite3.DatabaseError("database disk image is malformed")
    answer = to_grpc(error)
    assert answer.status is Status.UNAVAILABLE
    assert answer.details == [ErrorDetail(reason=ErrorReason.BUSY)]
    assert "try again" in str(answer.message)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("an error without a number"),
        catalog_failed("database disk image is malformed", sqlite3.SQLITE_CORRUPT),
        CatalogFailed(Path("catalog"), "without a cause"),
        KeyError("a mistake"),
    ],
    ids=repr,
)
def test_a_fault_is_internal_and_tells_nothing(error: Exception) -> None:
    answer = to_grpc(error)
    assert answer.status is Status.INTERNAL
    assert str(error) not in str(answer.message)


@pytest.mark.parametrize("kind", [Missing(Path("ca.crl"), "why", "advice"), PolicyInvalid("a.cedar", "why")], ids=repr)
def test_files_that_could_not_be_read_for_want_of_something_are_told_from_bad_ones(kind: Exception) -> None:
    assert shortage_of(kind) is None
    assert shortage_of(caused_by(kind, PermissionError(errno.EACCES, "Permission denied"))) is None
    assert shortage_of(caused_by(kind, NO_DESCRIPTOR)) == errno.EMFILE
