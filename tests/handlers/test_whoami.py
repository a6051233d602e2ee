"""WhoAmI."""

from datetime import UTC, datetime, timedelta

from tests.daemon import USER, Daemon

OWN_RIGHTS = [
    "explain",
    "list",
    "remove",
    "share",
    "show-envs",
    "spawn",
    "status",
    "stop",
    "stream-log",
    "whoami",
]


async def test_the_caller_is_who_the_certificate_says(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        me = await client.whoami()
    assert me.user is not None
    assert me.user.name == USER
    assert me.spiffe_id == f"spiffe://{shared_daemon.pki.trust_domain()}/user/{me.user.id}"
    on_jobs = {"explain", "remove", "share", "show-envs", "status", "stop", "stream-log"}
    assert me.rights == sorted(on_jobs | {"issue-credential", "list", "spawn", "whoami"})
    assert (me.roles, me.acting) == ([], None)
    assert me.certificate_expires_at is not None
    assert me.certificate_expires_at - datetime.now(UTC) > timedelta(days=80)
