"""Who can change what a path leads to: what is trusted, and what is refused with the command that mends it."""

import grp
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from system import ownership
from system.ownership import Untrusted, make_folder, open_own, require_trusted
from system.resolution import Device
from tests.system.test_exhaustion import become

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account or group")
SOMEBODY = 23461
NAMESPACE = ["unshare", "--user", "--map-user=54321", "--"]
MOUNT_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "--"]
can_mount = pytest.mark.skipif(
    subprocess.run([*MOUNT_NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this account may make no user namespaces",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A file of ours in a folder of ours in a folder of ours."""
    folder = tmp_path / "above" / "folder"
    folder.mkdir(parents=True)
    (folder / "file").touch(0o644)
    return folder / "file"


@pytest.fixture
def other_group() -> int:
    """The group of another account than root and the tests' own."""
    return next(account.pw_gid for account in pwd.getpwall() if account.pw_uid not in (0, os.geteuid()))


def refusal(path: Path, *, secret: bool = False) -> str:
    with pytest.raises(Untrusted) as refused:
        require_trusted(path, secret=secret)
    return str(refused.value)


def test_what_is_ours_alone_is_trusted(place: Path) -> None:
    """Below /tmp too, which is sticky; and a path that leads to nothing."""
    require_trusted(place)
    require_trusted(place.parent)
    require_trusted(place.parent / "missing" / "file")
    require_trusted(place.parent / ".." / "folder" / "file")


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["file", "folder", "folder above"])
def test_the_command_that_a_refusal_names_mends_it(place: Path, depth: int) -> None:
    lax = (place, *place.parents)[depth]
    lax.chmod(0o777)
    message = refusal(place)
    assert message.startswith(f"{lax} is refused: every account may write to it: ")
    [command] = re.findall(r"`(.*)`", message)
    subprocess.run(["sh", "-c", command], check=True, timeout=10)
    require_trusted(place)


def test_a_file_system_that_another_account_serves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "find_device", lambda _: Device("fuse", SOMEBODY))
    assert refusal(Path("/proc/version")).startswith("/proc is refused: uid 23461 serves the file system")


def test_a_sticky_folder_may_be_on_the_way_and_not_at_its_end(place: Path) -> None:
    place.parent.chmod(0o1777)
    require_trusted(place)
    assert str(place.parent) in refusal(place.parent)


@as_root
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["file", "folder", "folder above"])
def test_what_belongs_to_another_account_is_refused(place: Path, depth: int) -> None:
    os.chown((place, *place.parents)[depth], SOMEBODY, -1)
    assert f"it belongs to uid {SOMEBODY}, and this process runs as root" in refusal(place)


@as_root
def test_in_a_sticky_folder_what_belongs_to_another_account_is_refused(place: Path) -> None:
    place.parent.chmod(0o1777)
    os.chown(place, SOMEBODY, -1)
    refusal(place)


@as_root
def test_a_group_may_write_if_nobody_else_is_in_it(place: Path, other_group: int) -> None:
    """As umask 002 leaves what a user makes, with a group for each user; root's own group is one."""
    os.chown(place.parent, -1, 0)
    place.parent.chmod(0o775)
    require_trusted(place)
    os.chown(place.parent, -1, other_group)
    message = refusal(place)
    assert f"{place.parent} is refused: the group " in message
    assert f"`chmod go-w {place.parent}`" in message


@as_root
def test_a_group_that_seems_to_have_no_members_may_not_write(place: Path) -> None:
    """Where accounts are kept on another machine, they may not be listed here."""
    primary = {account.pw_gid for account in pwd.getpwall()}
    empty = [group.gr_gid for group in grp.getgrall() if not group.gr_mem and group.gr_gid not in primary]
    if not empty:
        pytest.skip("every group here has members")
    os.chown(place.parent, -1, empty[0])
    place.parent.chmod(0o775)
    refusal(place)


@as_root
def test_a_group_without_a_name_may_write_if_this_process_is_in_it(place: Path) -> None:
    """As a container has it that was given numbers."""
    os.chown(place.parent, -1, SOMEBODY)
    place.parent.chmod(0o775)
    refusal(place)
    check = "import sys, pathlib, system.ownership as o; o.require_trusted(pathlib.Path(sys.argv[1]))"
    command = ["setpriv", f"--groups=0,{SOMEBODY}", sys.executable, "-c", check, str(place)]
    subprocess.run(command, check=True, timeout=30)


def test_an_access_list_makes_a_private_group_no_longer_private(place: Path) -> None:
    """The group's bits are then those of everybody on the list (acl(5))."""
    everybody = (1, 7), (2, 7, SOMEBODY), (4, 7), (16, 7), (32, 5)  # owner, a user, group, mask, others
    entries = b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + (user[0] if user else 0xFFFFFFFF).to_bytes(4, "little")
        for tag, bits, *user in everybody
    )
    try:
        os.setxattr(place.parent, "system.posix_acl_access", (2).to_bytes(4, "little") + entries)
    except OSError as error:
        pytest.skip(f"this file system has no access lists: {error}")
    assert "may write to it" in refusal(place)


def test_every_link_on_the_way_is_followed_and_what_it_leads_to_is_checked(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("above/folder")
    (place.parent / "further").symlink_to(place)
    require_trusted(tmp_path / "link" / "further")
    (tmp_path / "lax").mkdir()
    (tmp_path / "lax" / "file").touch()
    (tmp_path / "lax").chmod(0o777)
    (place.parent / "astray").symlink_to("../../lax/file")
    assert refusal(tmp_path / "link" / "astray").startswith(f"{tmp_path / 'lax'} is refused")


@as_root
def test_a_link_of_another_account_is_refused(place: Path) -> None:
    """In a sticky folder anybody may lay one."""
    place.parent.chmod(0o1777)
    link = place.with_name("link")
    link.symlink_to(place)
    os.lchown(link, SOMEBODY, -1)
    assert str(link) in refusal(link)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_may_read_is_refused(place: Path, mode: int) -> None:
    place.chmod(mode)
    require_trusted(place)
    assert f"`chmod go= {place}`" in refusal(place, secret=True)
    place.chmod(0o600)
    require_trusted(place, secret=True)


@as_root
def test_the_group_of_a_key_of_root_s_may_read_it_and_nobody_else(place: Path, tmp_path: Path) -> None:
    """As an administrator lays keys out for an account; of root's own daemon they are root's alone."""
    check = "import sys, pathlib, system.ownership as o; o.require_trusted(pathlib.Path(sys.argv[1]), secret=True)"
    account = pwd.struct_passwd(("somebody", "x", SOMEBODY, SOMEBODY, "", "/", "/bin/sh"))
    command = [*become(account), sys.executable, "-c", check, str(place)]
    tmp_path.parent.chmod(0o711)
    os.chown(place, 0, SOMEBODY)
    for mode, trusted in ((0o640, True), (0o644, False), (0o606, False)):
        place.chmod(mode)
        assert (subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0) is trusted, mode
    place.chmod(0o640)
    refusal(place, secret=True)


def test_folders_above_the_home_directory_are_not_checked(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the administrator's, as for sshd."""
    tmp_path.chmod(0o777)
    refusal(place)
    account = SimpleNamespace(pw_dir=str(tmp_path / "above"), pw_name="me")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: account)
    require_trusted(place)
    (tmp_path / "above").chmod(0o777)
    refusal(place)


@as_root
@pytest.mark.usefixtures("place")
def test_a_link_of_another_account_into_the_home_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before the home directory is the administrator's only if it is above."""
    account = SimpleNamespace(pw_dir=str(tmp_path / "above"), pw_name="me")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: account)
    link = tmp_path / "theirs" / "link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "above")
    require_trusted(link / "folder" / "file")
    for theirs in (link.parent, link):
        os.lchown(theirs, SOMEBODY, -1)
        assert refusal(link).startswith(f"{theirs} is refused: it belongs to ")
        assert refusal(link / "folder" / "file").startswith(f"{theirs} is refused: it belongs to ")
        os.lchown(theirs, 0, -1)


def test_a_folder_above_the_home_directory_is_checked_on_the_way_elsewhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = SimpleNamespace(pw_dir=str(tmp_path / "above"), pw_name="me")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: account)
    (tmp_path / "elsewhere").mkdir()
    (place.parent / "out").symlink_to(tmp_path / "elsewhere")
    tmp_path.chmod(0o777)
    require_trusted(place)
    assert refusal(tmp_path / "elsewhere").startswith(f"{tmp_path} is refused")
    assert refusal(place.parent / "out").startswith(f"{tmp_path} is refused")


@can_mount
def test_a_link_whose_text_is_not_where_the_kernel_goes_is_refused(place: Path, tmp_path: Path) -> None:
    """The root of a process in another mount namespace says / (proc_pid_root(5))."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("other")
    (other / "file").chmod(0o666)
    script = 'mount --bind "$1" "$2" && echo ready && exec sleep 60'
    command = [*MOUNT_NAMESPACE, "sh", "-c", script, "sh", str(other), str(place.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            root = Path(f"/proc/{process.pid}/root")
            path = Path(f"{root}{place}")
            assert (path.read_text(), place.read_text()) == ("other", "")
            assert refusal(path).startswith(f"{root} is refused: it is a link to what a process has open")
            (place.parent / "link").symlink_to(path)
            assert refusal(place.parent / "link").startswith(f"{root} is refused: ")
        finally:
            process.kill()


@pytest.mark.skipif(
    subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this account may make no user namespaces",
)
def test_in_a_user_namespace_only_what_is_ours_needs_an_owner(place: Path, tmp_path: Path) -> None:
    """All other accounts are one number there (user_namespaces(7)); where root runs this, `above` has another owner."""
    if os.geteuid() == 0:
        os.chown(tmp_path / "above", SOMEBODY, -1)
    check = "import sys, pathlib, system.ownership as o; o.require_trusted(pathlib.Path(sys.argv[1]))"
    subprocess.run([*NAMESPACE, sys.executable, "-c", check, str(place)], check=True, timeout=30)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_folders_are_made_so_that_others_cannot_write_whatever_the_umask(tmp_path: Path) -> None:
    make_folder(tmp_path / "one" / "two")
    make_folder(tmp_path / "one" / "two")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("one", "one/two")] == [0o755, 0o700]


@as_root
def test_a_file_of_another_account_is_not_our_own(place: Path) -> None:
    os.chown(place, SOMEBODY, -1)
    with pytest.raises(Untrusted, match=f"it belongs to uid {SOMEBODY}: "):
        open_own(place, os.O_RDWR)
    assert place.stat().st_mode & 0o777 == 0o644


def test_a_file_of_our_own_is_no_link_and_nothing_but_a_file(place: Path) -> None:
    link, pipe = place.with_name("link"), place.with_name("pipe")
    link.symlink_to(place)
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(Untrusted, match=f"rm {path}"):
            open_own(path, os.O_RDWR)
    assert place.stat().st_mode & 0o777 == 0o644
    os.close(open_own(place, os.O_RDWR))
    assert place.stat().st_mode & 0o777 == 0o600
