"""Waiting for locks within a limit, and the errors that name the processes that hold them."""

import os
import threading
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from pki import files
from pki.store import PkiFolder
from system.file_lock import LockHeld, find_holder, lock_within
from tests.locks import held_by_another
from workerd.errors import to_grpc


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_a_lock_that_is_held_for_too_long_is_an_error_that_names_the_holder(file: Path) -> None:
    with held_by_another(file) as holder, file.open() as opened:
        with pytest.raises(LockHeld, match=rf"{file}: process {holder} \(sleep\) has held .* more than 0\.1 s"):
            lock_within(opened.fileno(), file, 0.1)
        assert find_holder(opened.fileno()) == holder


def test_a_holder_that_was_stopped_is_named_with_what_continues_it(file: Path) -> None:
    with held_by_another(file, stopped=True) as holder, file.open() as opened:
        with pytest.raises(LockHeld) as held:
            lock_within(opened.fileno(), file, 0.1)
        assert f"({_name(holder)}), which is stopped, has held" in str(held.value)
        assert f"`kill -CONT {holder}`" in str(held.value)


def test_a_lock_that_is_let_go_of_in_time_is_taken(file: Path) -> None:
    with held_by_another(file) as holder, file.open() as opened:
        ending = threading.Timer(0.2, os.kill, (holder, 9))
        ending.start()
        lock_within(opened.fileno(), file, 30)
        ending.join(30)
        assert find_holder(opened.fileno()) == os.getpid()


def test_an_authority_for_which_a_stopped_process_acts_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LOCK_SECONDS", 0.2)
    pki = PkiFolder(tmp_path / "pki")
    pki.initialize(users=["acrimon"])
    with held_by_another(files.key_path(pki.client_ca), stopped=True) as holder:
        with pytest.raises(LockHeld, match=f"process {holder}"):
            pki.issue_client("bob")
        with pytest.raises(LockHeld, match=f"process {holder}"):
            pki.revoke("acrimon")
    pki.issue_client("bob")


def test_a_lock_that_another_program_holds_is_no_fault_of_the_daemons_and_names_the_program() -> None:
    answer = to_grpc(LockHeld(Path("folder"), 20.0, os.getpid()))
    assert answer.status is Status.DEADLINE_EXCEEDED
    assert answer.details == [ErrorDetail(reason=ErrorReason.NO_ANSWER)]
    assert f"process {os.getpid()} (" in str(answer.message)
