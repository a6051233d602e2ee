"""What can be set, and what it is when it is not."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from audit.files import REMEMBERED
from pki.checks import is_name
from workerd.engine.job import DEFAULT_GRACE_SECONDS
from workerd.engine.storage import DEFAULT_STORAGE, MIN_LOG_BYTES, Storage
from workerd.errors import ConfigurationInvalid
from workerd.limits import DEFAULT_LIMITS, MAX_AMOUNT, Limits
from workerd.trail.witness import JOURNAL

MIN_AUDIT_BYTES = 1 << 20
DEFAULT_MAX_AUDIT_BYTES = 10 << 30
DEFAULT_LISTEN = "0.0.0.0:7005"  # reachable from elsewhere is what it is for; mutual TLS guards it
DEFAULT_KEEPALIVE_SECONDS = 20.0
MAX_PROCESSES = 64
_ROLE = re.compile(r"[a-z][a-z0-9-]*")
_ID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")  # RFC 9562 §4


def default_state_directory() -> Path:
    """Tell where the user's own daemon keeps its state (XDG_STATE_HOME)."""
    return platformdirs.user_state_path("workerd", appauthor=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a daemon runs.

    Attributes:
        host: the address to listen on.
        port: the port to listen on; zero for a free one.
        grace_seconds: between SIGTERM and SIGKILL when nobody says how long.
        policy_directory: where policies are that are added to the default ones.
        storage: what is kept of jobs.
        keepalive_seconds: after how much silence a connection is taken for dead.
        processes: how many processes answer calls; one does it by itself.
        roles: the names or ids of the users who have each role.
        run_as: the account that jobs run as when a spawn names none; empty for the daemon's own.
        accounts: the accounts that replace `run_as` for single users, by the user's name or id.
        limits: how much users may have of it.
        max_audit_bytes: how much the audit trail may take of the disk; zero for any amount.
        audit_witness: what is told the audit trail's heads: `journal`, a file's path, or empty for nothing.
        debuggable: whether other programs of the daemon's account may trace it and read its memory.
    """

    host: str
    port: int
    state_directory: Path
    pki_directory: Path
    policy_directory: Path
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    storage: Storage = DEFAULT_STORAGE
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS
    processes: int = 1
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    run_as: str = ""
    accounts: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = DEFAULT_LIMITS
    max_audit_bytes: int = DEFAULT_MAX_AUDIT_BYTES
    audit_witness: str = ""
    debuggable: bool = False

    @property
    def accounts_by_option(self) -> dict[str, str]:
        """The accounts that jobs run as when a spawn names none, by the option that sets each."""
        default = {"--run-as": self.run_as} if self.run_as else {}
        return default | {f"--accounts.{user}": account for user, account in self.accounts.items()}

    @property
    def audit_directory(self) -> Path:
        """Where the audit trail is."""
        return self.state_directory / "audit"

    @property
    def audit_head(self) -> Path:
        """Where the audit trail's head is remembered."""
        return self.state_directory / REMEMBERED


def make_settings(
    *,
    listen: str,
    state_dir: Path | None,
    pki_dir: Path | None,
    policy_dir: Path | None,
    grace_seconds: float,
    storage: Storage,
    keepalive_seconds: float,
    processes: int,
    roles: Mapping[str, Sequence[str]],
    run_as: str,
    accounts: Mapping[str, str],
    limits: Limits,
    max_audit_bytes: int,
    audit_witness: str,
    debuggable: bool,
) -> Settings:
    """Check what was given and fill in what was not.

    Raises:
        ConfigurationInvalid: with the setting and what it should be.
    """
    host, port = _read_address(listen)
    if not (math.isfinite(grace_seconds) and grace_seconds >= 0):
        raise ConfigurationInvalid(f"--grace-seconds {grace_seconds} is no time to wait: give 0 or more")
    if not (math.isfinite(keepalive_seconds) and keepalive_seconds > 0):
        raise ConfigurationInvalid(f"--keepalive-seconds {keepalive_seconds} is no time to wait: give more than 0")
    if storage.max_log_bytes != 0 and storage.max_log_bytes < MIN_LOG_BYTES:
        raise ConfigurationInvalid(
            f"--max-log-bytes {storage.max_log_bytes} is too few: give {MIN_LOG_BYTES} or more, or 0 for any"
        )
    if storage.max_log_bytes > MAX_AMOUNT:
        raise ConfigurationInvalid(f"--max-log-bytes {storage.max_log_bytes} cannot be: give {MAX_AMOUNT} at most")
    if storage.max_total_bytes < 0:
        raise ConfigurationInvalid(f"--max-total-bytes {storage.max_total_bytes} is no amount: give 0 or more")
    if not (math.isfinite(storage.max_age_seconds) and storage.max_age_seconds >= 0):
        raise ConfigurationInvalid(f"--max-age-seconds {storage.max_age_seconds} is no age: give 0 or more")
    if not 1 <= processes <= MAX_PROCESSES:
        raise ConfigurationInvalid(f"--processes {processes} is no number of processes: give 1 to {MAX_PROCESSES}")
    limits.check()
    if max_audit_bytes != 0 and max_audit_bytes < MIN_AUDIT_BYTES:
        raise ConfigurationInvalid(
            f"--max-audit-bytes {max_audit_bytes} is too few: give {MIN_AUDIT_BYTES} or more, or 0 for any"
        )
    state_directory = (state_dir or default_state_directory()).absolute()
    if audit_witness not in ("", JOURNAL):
        audit_witness = str(Path(audit_witness).absolute())
        if Path(audit_witness).is_relative_to(state_directory):
            raise ConfigurationInvalid(
                f"--audit-witness {audit_witness} is in the state directory {state_directory}, where it can be removed"
                " with the trail: give a file elsewhere, or journal"
            )
    return Settings(
        host=host,
        port=port,
        state_directory=state_directory,
        pki_directory=(pki_dir or state_directory / "pki").absolute(),
        policy_directory=(policy_dir or state_directory / "policies").absolute(),
        grace_seconds=grace_seconds,
        storage=storage,
        keepalive_seconds=keepalive_seconds,
        processes=processes,
        roles={role: tuple(_read_users(role, users)) for role, users in roles.items()},
        run_as=run_as,
        accounts=dict(_read_accounts(accounts)),
        limits=limits,
        max_audit_bytes=max_audit_bytes,
        audit_witness=audit_witness,
        debuggable=debuggable,
    )


def _read_address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationInvalid(f"--listen {listen!r} is not HOST:PORT: give for instance {DEFAULT_LISTEN}")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104


def _read_users(role: str, users: Sequence[str]) -> Iterator[str]:
    """Read who has a role: texts of names and ids, with commas between them."""
    if _ROLE.fullmatch(role) is None:
        raise ConfigurationInvalid(
            f"--roles.{role}: {role!r} is no role: it must be of lower-case letters, digits and hyphens, with a letter"
            " first, as admin or viewer"
        )
    for user in (each.strip() for text in users for each in text.split(",")):
        if not is_name(user):
            raise ConfigurationInvalid(
                f"--roles.{role} {user!r} is no user: give names or ids, with commas between them"
            )
        yield _canonical(user)


def _read_accounts(accounts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Check the accounts of single users. Whether the machine has the accounts is not checked here."""
    known: set[str] = set()
    for user, account in accounts.items():
        if not is_name(user):
            raise ConfigurationInvalid(f"--accounts.{user}: {user!r} is no user: give a name or an id")
        if not account:
            raise ConfigurationInvalid(f"--accounts.{user}: the account is empty: give its name, or leave this out")
        if _canonical(user) in known:
            raise ConfigurationInvalid(f"--accounts.{user}: the same id is given twice: leave one out")
        known.add(_canonical(user))
        yield _canonical(user), account


def _canonical(user: str) -> str:
    """Give an id as certificates have it, and a name as it is."""
    return user.lower() if _ID.fullmatch(user) else user
