"""The inventory of what an authority issued: whom a revocation reaches, and whose a name is."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pki.authority import issue_client
from pki.errors import AlreadyExists, InventoryDamaged, Missing, NameIssued
from pki.files import key_path, load_certificate, load_pair, write_pair
from pki.inventory import serial_text
from pki.store import PkiFolder
from tests.older import FORMAT_2, HistoryMissing, check_out

BOB_ID = "223e4567-e89b-42d3-a456-426614174000"


def serial(folder: PkiFolder, name: str) -> int:
    return load_certificate(folder.certificate(name)).serial_number


def user_id(folder: PkiFolder, name: str) -> str:
    return folder.inventory().issued[serial(folder, name)].user_id


def take_out(folder: PkiFolder, name: str) -> int:
    """Take a user's pair out of the folder and return its serial number."""
    number, path = serial(folder, name), folder.certificate(name)
    path.unlink()
    key_path(path).unlink()
    return number


def lines(folder: PkiFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.client_inventory.read_text().splitlines()]


def test_every_certificate_that_is_issued_to_a_user_has_a_line_that_other_programs_can_read(folder: PkiFolder) -> None:
    first = load_certificate(folder.certificate("alice"))
    folder.issue_client("bob", BOB_ID)
    folder.renew("alice")
    folder.issue_server("build2")
    alice, bob, renewed = lines(folder)
    assert bob == {
        "event": "issued",
        "serial": serial_text(serial(folder, "bob")),
        "name": "bob",
        "user_id": BOB_ID,
        "not_after": load_certificate(folder.certificate("bob")).not_valid_after_utc.isoformat().replace("+00:00", "Z"),
    }
    assert (alice["serial"], renewed["serial"]) == (
        serial_text(first.serial_number),
        serial_text(serial(folder, "alice")),
    )
    assert alice["user_id"] == renewed["user_id"]


def test_a_certificate_that_was_taken_out_of_the_folder_is_revoked_by_its_user_s_name(folder: PkiFolder) -> None:
    old = serial(folder, "alice")
    folder.renew("alice")
    shutil.rmtree(folder.path / "clients" / "replaced")
    gone = take_out(folder, "alice")
    assert folder.revoke("alice").keys() == {old, gone}
    assert folder.revoked() == {old, gone}


def test_a_name_that_two_users_had_is_revoked_for_both_and_a_user_id_for_one(folder: PkiFolder) -> None:
    first_id, first = user_id(folder, "alice"), take_out(folder, "alice")
    folder.issue_client("alice", new_user=True)
    second_id, second = user_id(folder, "alice"), serial(folder, "alice")
    assert first_id != second_id
    assert folder.revoke(first_id).keys() == {first}
    assert folder.revoked() == {first}
    assert folder.revoke("alice").keys() == {first, second}


def test_a_user_id_is_revoked_under_every_name(folder: PkiFolder) -> None:
    alice = user_id(folder, "alice")
    folder.issue_client("alicia", alice)
    folder.issue_client("bob")
    assert folder.revoke(alice).keys() == {serial(folder, "alice"), serial(folder, "alicia")}


def test_a_name_that_was_issued_before_is_issued_by_decision_only(folder: PkiFolder) -> None:
    first_id, _ = user_id(folder, "alice"), take_out(folder, "alice")
    with pytest.raises(NameIssued, match=f"to user {first_id}: give --user-id {first_id}") as raised:
        folder.issue_client("alice")
    assert "--new-user" in str(raised.value)
    assert not folder.certificate("alice").exists()
    folder.issue_client("alice", first_id)
    assert user_id(folder, "alice") == first_id
    take_out(folder, "alice")
    folder.issue_client("alice", new_user=True)
    assert user_id(folder, "alice") != first_id


def test_the_line_is_there_before_the_certificate(folder: PkiFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, credential: object) -> None:
        del credential
        raise AlreadyExists(path, "the machine stopped here")

    monkeypatch.setattr("pki.store.write_pair", fail)
    with pytest.raises(AlreadyExists):
        folder.issue_client("bob")
    assert lines(folder)[-1]["name"] == "bob"
    assert len(folder.revoke("bob")) == 1


def test_a_line_that_was_cut_off_is_replaced_and_hides_no_other(folder: PkiFolder) -> None:
    whole = folder.client_inventory.read_bytes()
    folder.client_inventory.write_bytes(whole + b'{"event":"issued","serial":"0')
    assert folder.inventory().issued.keys() == {serial(folder, "alice")}
    folder.issue_client("bob")
    assert folder.client_inventory.read_bytes().startswith(whole + b'{"event":"issued"')
    assert [line["name"] for line in lines(folder)] == ["alice", "bob"]


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"{}", b'{"event":"issued","serial":"x","name":"a","user_id":"b","not_after":"2027"}', b"\xff"],
)
def test_a_damaged_line_is_named_and_nothing_is_issued_or_revoked(folder: PkiFolder, line: bytes) -> None:
    folder.client_inventory.write_bytes(folder.client_inventory.read_bytes() + line + b"\n")
    for act in (lambda: folder.issue_client("bob"), lambda: folder.revoke("alice"), lambda: folder.renew("alice")):
        with pytest.raises(InventoryDamaged, match=r"line 2 of .*client-ca\.issued\.jsonl"):
            act()
    assert not folder.certificate("bob").exists()
    assert not folder.client_crl.exists()


def test_a_list_from_a_backup_gets_back_whom_it_lacks_with_the_next_revocation(folder: PkiFolder) -> None:
    folder.issue_client("bob")
    folder.issue_client("carol")
    folder.revoke("alice")
    backup = folder.client_crl.read_bytes()
    folder.revoke("bob")
    folder.client_crl.write_bytes(backup)
    told = folder.revoke("carol")
    alice, bob, carol = (serial(folder, name) for name in ("alice", "bob", "carol"))
    assert folder.revoked() == {alice, bob, carol}
    assert {number for number, revoked in told.items() if revoked.was_lost} == {bob}
    assert folder.inventory().crl_number == 3
    folder.client_crl.unlink()
    folder.revoke("carol")
    assert folder.revoked() == {alice, bob, carol}


def test_an_inventory_without_its_authority_is_not_taken_for_a_new_one_s(folder: PkiFolder, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    other.path.mkdir()
    shutil.copy(folder.client_inventory, other.client_inventory)
    with pytest.raises(AlreadyExists, match="another authority's"):
        other.initialize()


def test_many_at_once_leave_a_line_each_and_one_of_them_gets_a_name(folder: PkiFolder) -> None:
    def issue(name: str) -> bool:
        try:
            folder.issue_client(name)
        except (AlreadyExists, NameIssued):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        issued = list(pool.map(issue, [*(f"user{number}" for number in range(8)), *["same"] * 8]))
    assert sum(issued) == 9
    assert sorted(str(line["name"]) for line in lines(folder)) == sorted(
        ["alice", "same", *map("user{}".format, range(8))]
    )


def test_what_is_another_authority_s_is_not_taken_into_a_new_inventory(folder: PkiFolder, tmp_path: Path) -> None:
    stranger = PkiFolder(tmp_path / "stranger")
    stranger.initialize()
    write_pair(folder.client_certificate("eve"), issue_client(load_pair(stranger.client_ca), "eve", BOB_ID))
    folder.client_inventory.unlink()
    folder.issue_client("bob")
    assert [line["name"] for line in lines(folder)] == ["alice", "bob"]


def test_a_folder_of_an_earlier_version_gets_its_inventory_from_what_is_there(tmp_path: Path) -> None:
    """The folder is made by the code of an earlier commit."""
    try:
        older = check_out(FORMAT_2, tmp_path / "older")
    except HistoryMissing as error:
        pytest.skip(f"the earlier code is not here: {error}")
    folder = PkiFolder(tmp_path / "pki")

    def workerctl(*arguments: str) -> None:
        command = [*older.prefix, sys.executable, "-m", "workerctl", "--pki-dir", str(folder.path), "pki", *arguments]
        subprocess.run(command, check=True, timeout=60, capture_output=True)

    workerctl("init")
    for name in ("alice", "bob", "carol"):
        workerctl("issue-client", name)
    workerctl("renew", "alice")
    workerctl("revoke", "bob")
    assert not folder.client_inventory.exists()
    bob, alice = serial(folder, "bob"), {load_certificate(path).serial_number for path in folder.certificates()}
    folder.issue_client("dave")
    assert sorted(str(line["name"]) for line in lines(folder)) == ["alice", "alice", "bob", "carol", "dave"]
    take_out(folder, "carol")
    with pytest.raises(NameIssued):
        folder.issue_client("carol")
    told = folder.revoke("alice")
    assert len(told) == 2
    assert told.keys() <= alice
    assert folder.revoked() == {bob, *told}
    assert folder.inventory().revoked == {bob, *told}
    folder.client_crl.unlink()
    folder.revoke("dave")
    assert folder.revoked() == {bob, *told, serial(folder, "dave")}


def test_an_inventory_that_cannot_be_read_is_named(folder: PkiFolder) -> None:
    folder.client_inventory.unlink()
    folder.client_inventory.mkdir()
    with pytest.raises(Missing, match=r"client-ca\.issued\.jsonl"):
        folder.issue_client("bob")
