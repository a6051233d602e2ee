"""Nobody gets more than they have, whatever is asked for in whichever order.

A machine makes up requests and gives them to the handler, with real keys and certificates. Each certificate that comes
back is read as TLS reads it, and compared with the one that was there at first.
"""

import _ssl
import asyncio
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule
from worker_api.worker.v1 import IssueCredentialRequest

from pki.authority import issue_client
from pki.errors import CertificateExpired, InvalidNarrowing
from pki.files import load_pair
from pki.identity import MOST_ANCESTORS, Identity, read_identity
from pki.narrowing import LIFETIME, make_key, make_request
from pki.store import PkiFolder
from workerd.access.accounts import Accounts
from workerd.access.caller import Caller
from workerd.access.recorder import Recorder
from workerd.access.rights import Rights
from workerd.engine.errors import InvalidArgument
from workerd.errors import NotPermitted
from workerd.handler import Call, Daemon
from workerd.handlers.issue_credential import issue_credential
from workerd.registry import load_routes, rights_of

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
KNOWN = rights_of(load_routes().values())
_REFUSALS = (InvalidArgument, NotPermitted, InvalidNarrowing, CertificateExpired)

some_rights = st.lists(st.sampled_from(sorted(KNOWN)), max_size=6)
odd_rights = st.lists(st.sampled_from([*sorted(KNOWN), "", "fly", "list.stop", "list/only/stop", "*"]), max_size=3)
lifetimes = st.none() | st.timedeltas(timedelta(seconds=-2), timedelta(days=30)) | st.just(timedelta(days=3_000_000))


def read(folder: Path, certificate: bytes, domain: str) -> Identity:
    """Read a certificate with what `ssl.SSLSocket.getpeercert` reads it with."""
    path = folder / "certificate"
    path.write_bytes(x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
    decoded: Mapping[str, Any] = _ssl._test_decode_cert(str(path))  # type: ignore[attr-defined]
    return read_identity(decoded, domain)


def forget(event: Mapping[str, Any], *, urgent: bool = False) -> None:
    """Write no audit trail."""


class Issuing(RuleBasedStateMachine):
    """A tree of certificates, of which each but the first was issued for another."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        path = Path(self._scratch.name)
        self._pki = PkiFolder(path / "pki")
        self._pki.initialize()
        self._rights = Rights(path / "policies", {}, KNOWN)

    def teardown(self) -> None:
        self._scratch.cleanup()

    @initialize(target=holders, lifetime=st.timedeltas(timedelta(seconds=1), timedelta(days=1)))
    def begin(self, lifetime: timedelta) -> Identity:
        first = issue_client(load_pair(self._pki.client_ca), "alice", USER_ID, lifetime).certificate
        self._first = self._read(first.public_bytes(Encoding.DER))
        return self._first

    @rule(target=holders, holder=holders, rights=some_rights | odd_rights, lifetime=lifetimes)
    def ask(self, holder: Identity, rights: list[str], lifetime: timedelta | None) -> Any:
        before = datetime.now(UTC)
        daemon = Daemon(cast("Any", None), cast("Any", None), self._pki, 0, Accounts("workerd"))
        caller = Caller(holder, None, "somewhere", "/IssueCredential", self._rights, Recorder(forget))
        request = IssueCredentialRequest(
            certificate_request=make_request(make_key("ed25519")), rights=rights, lifetime=lifetime
        )
        try:
            answer = asyncio.run(issue_credential.function(Call(daemon, caller, None), request))
        except _REFUSALS:
            assert not self._is_due(holder, rights, lifetime)
            return multiple()
        issued = self._read(answer.certificate)
        assert issued.rights == frozenset(rights)
        assert issued.rights <= (KNOWN.keys() if holder.rights is None else holder.rights)
        assert issued.ancestors == (*holder.ancestors, holder.serial)
        assert issued.ancestors[0] == self._first.serial
        assert (issued.user_id, issued.name) == (self._first.user_id, self._first.name)
        assert issued.expires_at <= min(holder.expires_at, self._first.expires_at)
        assert issued.expires_at - datetime.now(UTC) <= (LIFETIME if lifetime is None else lifetime)
        assert issued.not_before >= max(holder.not_before, self._first.not_before)
        assert issued.not_before <= before < issued.expires_at
        return issued

    def _is_due(self, holder: Identity, rights: list[str], lifetime: timedelta | None) -> bool:
        """Tell whether somebody is to be given what they ask for."""
        allowed = KNOWN.keys() if holder.rights is None else holder.rights
        return (
            len(rights) > 0
            and set(rights) <= allowed
            and (lifetime is None or lifetime >= timedelta(seconds=1))
            and len(holder.ancestors) < MOST_ANCESTORS
            and holder.expires_at > datetime.now(UTC)
        )

    def _read(self, certificate: bytes) -> Identity:
        return read(Path(self._scratch.name), certificate, self._pki.trust_domain())


TestIssuing = Issuing.TestCase
TestIssuing.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # the clock is real: what fails is not repeated for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
