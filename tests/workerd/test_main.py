"""The command `workerd`: what it says, and what it exits with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status
from worker_api.worker.v1 import SpawnRequest, SpawnResponse

from pki.store import PkiFolder
from tests.daemon import USER, Daemon, running_daemon
from workerctl.client import Client
from workerctl.errors import CallFailed

ID = "11111111-1111-4111-8111-11111111111a"
STUMBLES = """
import asyncio
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from worker_api.worker.v1 import SpawnRequest, SpawnResponse
from workerd.handler import handles

class Service:
    def __mapping__(self):
        return {"/stumble.v1.Stumble/Stumble": Handler(None, Cardinality.UNARY_UNARY, SpawnRequest, SpawnResponse)}

@handles(Service, "Stumble", right="stumble", reads=True)
async def stumble(call, request):
    envs = dict(request.envs)
    match request.program:
        case "exit":
            raise SystemExit(0)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancel":
            raise asyncio.CancelledError
        case "leave":
            raise StreamTerminatedError("of another's")
        case "end":
            raise GeneratorExit
    raise RuntimeError(f"stumbled with {len(envs)} variables")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler with a mistake in it, installed for the programs that a test starts."""
    info = tmp_path / "stumble-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stumble\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workerd.handlers]\nstumble = stumble:stumble\n")
    (tmp_path / "stumble.py").write_text(STUMBLES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def workerd(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run workerd, which is to end by itself."""
    command = [sys.executable, "-m", "workerd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def stumble(client: Client, request: SpawnRequest) -> None:
    await client.call(
        lambda channel: UnaryUnaryMethod(channel, "/stumble.v1.Stumble/Stumble", SpawnRequest, SpawnResponse)(request)
    )


@pytest.mark.usefixtures("plugin")
async def test_a_handlers_fault_is_in_the_log_without_what_the_caller_sent(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--roles.admin", USER) as daemon:
        async with daemon.client() as client:
            with pytest.raises(CallFailed) as caught:
                await stumble(client, SpawnRequest(program="true", envs={"TOKEN": "hunter2"}))
        assert caught.value.status is Status.INTERNAL
        said = daemon.errors()
    assert "RuntimeError: stumbled with 1 variables" in said
    assert "hunter2" not in said
    assert len(said.splitlines()) < 30


@pytest.mark.usefixtures("plugin")
async def test_whatever_a_handler_raises_is_its_fault_and_ends_nothing_else(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--roles.admin", USER) as daemon:
        async with daemon.client() as client:
            for number, what in enumerate(("exit", "interrupt", "cancel", "leave", "end"), 1):
                with pytest.raises(CallFailed) as caught:
                    await stumble(client, SpawnRequest(program=what))
                assert caught.value.status is Status.INTERNAL, what
                assert daemon.errors().count("HandlerFaulty: a handler raised") == number, what
            await client.whoami()


def test_a_daemon_without_standard_streams_serves(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "state")
    command = [sys.executable, "-m", "workerd", "--listen", "127.0.0.1:0", "--state-dir", str(daemon.state)]
    with subprocess.Popen(["/bin/sh", "-c", 'exec "$@" <&- 2>&-', "sh", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"serving gRPC endpoint at ")
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_empty_folders_are_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the current folder: here the one that is meant cannot be made."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    result = workerd("--listen", "127.0.0.1:0", "--state-dir", "", "--pki-dir", "")
    assert result.returncode == 1
    assert str(tmp_path / "file" / "workerd") in result.stderr


def test_a_start_that_is_refused_leaves_no_half_of_the_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "alice")  # what getpass.getuser looks at first
    (tmp_path / "pki" / "clients").mkdir(parents=True)
    (tmp_path / "pki" / "clients" / "alice.crt").touch()
    result = workerd("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "alice.crt" in result.stderr
    assert [path.name for path in (tmp_path / "pki").rglob("*")] == ["clients", "alice.crt"]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_daemon_that_is_refused_makes_no_authority(tmp_path: Path, processes: str) -> None:
    """Neither beside one that serves the same jobs with other certificates, nor where its port is taken."""
    options = ("--processes", processes, "--listen")
    with running_daemon(tmp_path / "state") as other:
        state = ("--state-dir", str(other.state), "--pki-dir", str(tmp_path / "pki"))
        refusals = [
            (workerd(*state, *options, "127.0.0.1:0"), "another workerd"),
            (workerd("--state-dir", str(tmp_path / "own"), *options, f"127.0.0.1:{other.port}"), "cannot listen on"),
        ]
    for result, told in refusals:
        assert (result.returncode, result.stdout) == (1, "")
        assert told in result.stderr and "made certificates" not in result.stderr
    assert not (tmp_path / "pki").exists() and not (tmp_path / "own" / "pki").exists()


@pytest.mark.parametrize(("kept", "missing"), [("server.crt", "client-ca.crt"), ("client-ca.crt", "server.crt")])
def test_a_certificate_that_was_not_copied_is_named(tmp_path: Path, kept: str, missing: str) -> None:
    PkiFolder(tmp_path / "pki").initialize()
    for path in (tmp_path / "pki").glob("*.*"):
        if path.stem != Path(kept).stem:
            path.unlink()
    result = workerd("--listen", "127.0.0.1:0", "--state-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    path = tmp_path / "pki" / missing
    told = f"workerd: cannot read {path}: it is not there, and {kept} is: copy it from where {kept} was made"
    assert result.stderr.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--listen", "7005"), "'7005' is not HOST:PORT"),
        (("--grace-seconds", "-1"), "give 0 or more"),
        (("--grace-seconds", "soon"), "--grace-seconds"),
        (("--max-audit-bytes", "-1"), "give 1048576 or more, or 0 for any"),
        (("--max-audit-bytes", "1000"), "give 1048576 or more, or 0 for any"),
        (("--nonsense",), "--nonsense"),
        (("--roles", "alice"), "--roles does not say who has which role: write --roles.admin alice for instance"),
        (("--roles", "viewer=alice"), "--roles does not say who has which role: write --roles.viewer alice for"),
        (("--run-as", "no-such-account"), "workerd: --run-as: cannot run as no-such-account: "),
        (("--accounts.alice", "no-such-account"), "workerd: --accounts.alice: cannot run as no-such-account: "),
        (("--accounts.alice", ""), "--accounts.alice: the account is empty: give its name, or leave this out"),
        (("--accounts.a b", "root"), "--accounts.a b: 'a b' is no user: give a name or an id"),
        (("--accounts", "alice"), "does not say as which account a user's jobs run: write --accounts.acrimon build"),
        (("--accounts.a.b", "root"), "does not say as which account a user's jobs run: write --accounts.acrimon build"),
        (("--config", "{folder}/account.toml"), "{folder}/account.toml: accounts.first.last: cannot run as no-such-"),
        (("--config", "{folder}/list.toml"), "{folder}/list.toml: accounts.alice: ['root'] is not the name of an"),
        (("--config", "{folder}/text.toml"), "{folder}/text.toml: accounts: 'root' is not a table: write [accounts]"),
        (("--config", "{folder}/twice.toml"), "{folder}/twice.toml: accounts.{id}: the same id is given twice"),
        (("--config", "{folder}/few.toml"), "{folder}/few.toml: max-log-bytes 5 is too few"),
        (("--config", "{folder}/few.toml", "--max-log-bytes", "6"), "workerd: --max-log-bytes 6 is too few"),
        (("--roles.Admin", "alice"), "'Admin' is no role: it must be of lower-case letters, digits and hyphens"),
        (("--roles.admin", "alice,"), "--roles.admin '' is no user: give names or ids, with commas between them"),
        (("--roles.admin", "alice bob"), "--roles.admin 'alice bob' is no user"),
        (("--roles.admin", ""), "--roles.admin '' is no user"),
        (("--config", "{folder}/none.toml"), "{folder}/none.toml: No such file or directory"),
        (("--config", "{folder}/bad.toml"), "{folder}/bad.toml is not TOML: "),
        (("--config", "{folder}/odd.toml"), "{folder}/odd.toml"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "bad.toml").write_text("listen = ")
    (tmp_path / "odd.toml").write_text("colour = 1")
    (tmp_path / "account.toml").write_text('[accounts]\n"first.last" = "no-such-account"')
    (tmp_path / "list.toml").write_text('[accounts]\nalice = ["root"]')
    (tmp_path / "text.toml").write_text('accounts = "root"')
    (tmp_path / "twice.toml").write_text(f'[accounts]\n{ID.upper()} = "root"\n{ID} = "root"')
    (tmp_path / "few.toml").write_text("max-log-bytes = 5")
    result = workerd("--state-dir", str(tmp_path / "state"), *(each.format(folder=tmp_path) for each in arguments))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert told.format(folder=tmp_path, id=ID) in result.stderr
    assert not (tmp_path / "state").exists()


def test_an_address_that_cannot_be_listened_on_is_one_line_and_code_1(tmp_path: Path) -> None:
    result = workerd("--state-dir", str(tmp_path), "--listen", "192.0.2.1:1")  # RFC 5737: nobody's
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("workerd: cannot listen on 192.0.2.1:1: ")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    result = workerd("--state-dir", str(tmp_path / "state"))
    assert (result.returncode, result.stderr) == (1, f"workerd: {tmp_path / 'state'}: File exists\n")


@pytest.mark.parametrize("way", ["options", "commas", "variable", "JSON", "file"])
def test_roles_are_given_in_each_way_that_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    file = tmp_path / "workerd.toml"
    file.write_text(f'[roles]\nadmin = ["other", "{USER}"]\n')
    options = {
        "options": ("--roles.admin", "other", "--roles.admin", USER),
        "commas": ("--roles.admin", f"other,{USER}"),
        "file": ("--config", str(file)),
    }
    if way == "variable":
        monkeypatch.setenv("WORKERD_ROLES_ADMIN", f"other,{USER}")
    elif way == "JSON":
        monkeypatch.setenv("WORKERD_ROLES", f'{{"admin": ["other", "{USER}"]}}')
    with running_daemon(tmp_path / "state", *options.get(way, ())) as daemon:
        assert b"roles: admin\n" in daemon.workerctl("whoami").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take on another account")
@pytest.mark.parametrize("way", ["option", "variable", "JSON", "file", "option before file"])
def test_accounts_are_given_in_each_way_that_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    file = tmp_path / "workerd.toml"
    file.write_text(f'[accounts]\n{USER} = "{"no-such-account" if "option" in way else "nobody"}"\n')
    options = {
        "option": (f"--accounts.{USER}", "nobody"),
        "file": ("--config", str(file)),
        "option before file": ("--config", str(file), f"--accounts.{USER}", "nobody"),
    }
    if way == "variable":
        monkeypatch.setenv(f"WORKERD_ACCOUNTS_{USER.upper()}", "nobody")
    elif way == "JSON":
        monkeypatch.setenv("WORKERD_ACCOUNTS", f'{{"{USER}": "nobody", "first.last": "root"}}')
    with running_daemon(tmp_path / "state", *options.get(way, ())) as daemon:
        assert b"jobs run as: nobody\n" in daemon.workerctl("whoami").stdout
