"""Processes held by a descriptor."""

import fcntl
import os
import resource
import signal
import subprocess

import pytest

from system import pidfd


def test_a_process_has_ended_before_it_is_reaped() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process, pidfd.hold(process.pid) as handle:
        assert not pidfd.has_ended(handle)
        assert not pidfd.wait_ended(handle, 0.01)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert pidfd.wait_ended(handle, 30)
        assert pidfd.has_ended(handle)
        assert process.returncode is None
    with pytest.raises(ProcessLookupError), pidfd.hold(process.pid):
        pass


def test_a_daemon_with_many_descriptors_can_wait_for_a_process() -> None:
    """select(2) takes none from 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no process may have so many descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with pidfd.hold(os.getpid()) as handle:
            high = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 1500)
            assert not pidfd.has_ended(high)
            os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
