"""Certificates that are about to expire, as user and daemon are told."""

import json
import re

from tests.daemon import USER, Daemon


def test_user_and_log_are_warned_of_a_certificate_that_is_about_to_expire(any_daemon: Daemon) -> None:
    assert any_daemon.workerctl("whoami").stderr == b""
    any_daemon.pki.renew(USER, days=13)
    result = any_daemon.workerctl("whoami", "--output", "json")
    assert result.returncode == 0 and json.loads(result.stdout)["certificate_expires_at"]
    line = result.stderr.decode()
    assert line.count("\n") == 1
    assert "your certificate is about to expire" in line and f"workerctl pki renew {USER}" in line
    assert "a user's certificate is about to expire" in any_daemon.errors()
    assert "the daemon's certificate is about to expire" not in any_daemon.errors()


def test_the_time_of_day_is_shown_of_a_certificate_that_holds_for_less_than_two_days(any_daemon: Daemon) -> None:
    assert re.search(rb"certificate expires: \d{4}-\d\d-\d\d\n", any_daemon.workerctl("whoami").stdout)
    any_daemon.pki.renew(USER, days=1)
    shown = any_daemon.workerctl("whoami").stdout
    assert re.search(rb"certificate expires: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", shown)


def test_log_warns_once_of_the_daemon_s_own_certificate(any_daemon: Daemon) -> None:
    """However many processes serve."""
    any_daemon.stop()
    any_daemon.pki.renew("server", days=13)
    any_daemon.start()
    assert any_daemon.workerctl("whoami").returncode == 0
    assert any_daemon.errors().count("the daemon's certificate is about to expire") == 1
