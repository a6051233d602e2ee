"""IssueCredential: what is issued, to whom, and what is refused."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, IssueCredentialRequest, SpawnRequest, WorkerServiceStub

from pki.errors import InvalidRequest
from pki.files import key_path
from pki.identity import Named, read_any_uri
from pki.inventory import describe_now, serial_text
from pki.narrowing import fit, make_key, make_request
from pki.store import PkiFolder
from tests.daemon import USER, Daemon, running_daemon
from tests.narrowing import narrow
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.target import Target

SECOND = timedelta(seconds=1)


def request() -> bytes:
    return make_request(make_key("p256"))


async def refusal(
    client: Client, *rights: str, data: bytes | None = None, lifetime: timedelta | None = None
) -> CallFailed:
    """Ask for what is not issued."""
    with pytest.raises(CallFailed) as raised:
        await client.issue_credential(request() if data is None else data, rights, lifetime)
    return raised.value


async def test_what_is_issued_names_the_same_user_its_rights_and_its_descent(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        me = await client.whoami()
        issued = await client.issue_credential(request(), ["stream-log", "status", "status"])
    certificate = x509.load_der_x509_certificate(issued.certificate)
    own = x509.load_pem_x509_certificate(shared_daemon.pki.client_certificate(USER).read_bytes())
    described = describe_now(certificate)
    assert me.user is not None and described.subject == me.user.name
    rights, ancestors = frozenset({"status", "stream-log"}), (serial_text(own.serial_number),)
    assert read_any_uri(described.spiffe_id) == Named(me.user.id, rights, ancestors)
    assert issued.expires_at == certificate.not_valid_after_utc


@pytest.mark.parametrize("lifetime", [None, timedelta(minutes=3), timedelta(days=10_000)])
async def test_it_holds_a_quarter_of_an_hour_or_as_asked_but_not_longer_than_the_caller_s(
    shared_daemon: Daemon, lifetime: timedelta | None
) -> None:
    own = x509.load_pem_x509_certificate(shared_daemon.pki.client_certificate(USER).read_bytes())
    async with shared_daemon.client() as client:
        before = datetime.now(UTC)
        issued = await client.issue_credential(request(), ["status"], lifetime)
        after = datetime.now(UTC)
    assert issued.expires_at is not None
    wanted = timedelta(minutes=15) if lifetime is None else lifetime
    first, last = (min(moment + wanted, own.not_valid_after_utc) for moment in (before, after))
    assert first - SECOND <= issued.expires_at <= last


@pytest.mark.parametrize(
    ("rights", "problem"), [((), "names none"), (("status", "fly"), "names 'fly'"), (("",), "names ''")]
)
async def test_rights_must_be_some_that_there_are(shared_daemon: Daemon, rights: tuple[str, ...], problem: str) -> None:
    async with shared_daemon.client() as client:
        error = await refusal(client, *rights)
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID)
    assert problem in str(error)


@pytest.mark.parametrize("lifetime", [timedelta(0), -SECOND, timedelta(milliseconds=999)])
async def test_lifetime_must_be_a_second_at_least(shared_daemon: Daemon, lifetime: timedelta) -> None:
    async with shared_daemon.client() as client:
        error = await refusal(client, "status", lifetime=lifetime)
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID)


@pytest.mark.parametrize("data", [b"", b"nonsense", bytes(1 << 20)])
async def test_request_must_be_one(shared_daemon: Daemon, data: bytes) -> None:
    async with shared_daemon.client() as client:
        error = await refusal(client, "status", data=data)
    assert (error.status, error.reason) == (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID)
    assert "certificate request" in str(error)


async def test_request_that_others_make_and_keep_in_pem_is_as_good(shared_daemon: Daemon) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    somebody_else = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    pem = x509.CertificateSigningRequestBuilder(somebody_else).sign(key, hashes.SHA384()).public_bytes(Encoding.PEM)
    async with shared_daemon.client() as client:
        issued = await client.issue_credential(pem, ["status"])
        assert describe_now(fit(key, issued.certificate).certificate).subject == USER
        with pytest.raises(InvalidRequest, match="no PKCS #10 in PEM"):
            await client.issue_credential(pem[:200], ["status"])


def test_nothing_that_is_slow_to_import_is_loaded_before_it_is_needed() -> None:
    modules = "workerctl.commands.credential, workerd.handlers.issue_credential"
    script = f"import sys, {modules}; sys.exit('cryptography' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


async def test_narrowed_certificate_is_good_for_its_rights_only(shared_daemon: Daemon, tmp_path: Path) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="true"))
        target = await narrow(client, shared_daemon, tmp_path, ["status", "whoami"])
    async with Client(target) as narrowed:
        assert (await narrowed.status(job_id)).id == job_id
        assert (await narrowed.whoami()).rights == ["status", "whoami"]
        for call in (
            narrowed.stop(job_id),
            narrowed.remove(job_id),
            narrowed.spawn(SpawnRequest(program="true")),
            narrowed.issue_credential(request(), ["status"]),
            anext(narrowed.list_jobs()),
            anext(narrowed.stream_log(job_id)),
        ):
            with pytest.raises(CallFailed) as raised:
                await call
            assert (raised.value.status, raised.value.reason) == (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED)


async def test_narrowed_certificate_s_refusal_does_not_tell_which_jobs_there_are(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="true"))
        target = await narrow(client, shared_daemon, tmp_path, ["status"])
    answers = []
    async with Client(target) as narrowed:
        for each in (job_id, "123e4567-e89b-42d3-a456-426614174000"):
            with pytest.raises(CallFailed) as raised:
                await narrowed.stop(each)
            answers.append((raised.value.status, raised.value.reason, str(raised.value)))
    assert answers[0] == answers[1]


async def test_chain_gets_narrower_only(shared_daemon: Daemon, tmp_path: Path) -> None:
    async with shared_daemon.client() as client:
        target = await narrow(client, shared_daemon, tmp_path / "1", ["status", "list", "whoami", "issue-credential"])
    async with Client(target) as first:
        for beyond in (("stop",), ("status", "stop")):
            error = await refusal(first, *beyond)
            assert (error.status, error.reason) == (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED)
        target = await narrow(first, shared_daemon, tmp_path / "2", ["list", "whoami"], lifetime=timedelta(days=9))
    async with Client(target) as second:
        assert len((await second.whoami()).rights) == 2
        with pytest.raises(CallFailed, match="no right to status"):
            await second.status("123e4567-e89b-42d3-a456-426614174000")
    one, two = (
        x509.load_pem_x509_certificate(PkiFolder(tmp_path / name).client_certificate(USER).read_bytes())
        for name in ("1", "2")
    )
    assert two.not_valid_after_utc == one.not_valid_after_utc
    assert describe_now(two).ancestors == (*describe_now(one).ancestors, serial_text(one.serial_number))


async def test_nobody_is_given_a_certificate_of_somebody_else(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state") as daemon:
        other = daemon.pki.issue_client("bob")
        (tmp_path / "state" / "policies").mkdir()
        (tmp_path / "state" / "policies" / "all.cedar").write_text("permit (principal, action, resource);")
        daemon.stop()
        daemon.start()
        async with daemon.client("bob") as client:
            await client.whoami()
        async with Client(Target(daemon.endpoint, "bob", daemon.pki.path, USER)) as acting:
            me = await acting.whoami()
            assert me.user is not None and me.user.name == "bob" and me.acting is not None
            error = await refusal(acting, "status")
    assert (error.status, error.reason) == (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED)
    assert "issued to its own user only" in str(error)
    assert other.exists()


async def test_daemon_without_the_key_says_so_and_goes_by_it_when_it_is_back(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state") as daemon:
        key, aside = key_path(daemon.pki.client_ca), tmp_path / "aside"
        async with daemon.client() as client:
            key.rename(aside)
            error = await refusal(client, "status")
            assert (error.status, error.reason) == (Status.FAILED_PRECONDITION, ErrorReason.CANNOT_ISSUE)
            assert "client-ca.key" in str(error) and str(tmp_path) not in str(error)
            key.write_bytes(key_path(daemon.pki.server_ca).read_bytes())  # of another certificate
            key.chmod(0o644)
            assert (await refusal(client, "status")).reason is ErrorReason.CANNOT_ISSUE
            assert f"chmod go= {key}" in daemon.errors()
            key.chmod(0o600)
            assert (await refusal(client, "status")).reason is ErrorReason.CANNOT_ISSUE
            key.unlink()
            aside.rename(key)
            assert (await client.issue_credential(request(), ["status"])).certificate
        assert str(key) in daemon.errors()


async def test_call_may_be_made_by_hand(shared_daemon: Daemon) -> None:
    """Whatever of a request is absent has a meaning, or is refused."""
    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed) as raised:
            await client.call(lambda channel: WorkerServiceStub(channel).issue_credential(IssueCredentialRequest()))
    assert raised.value.status is Status.INVALID_ARGUMENT
