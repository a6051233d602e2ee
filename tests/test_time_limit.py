"""The test suite itself: it ends, and it passes, however it was started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS

ROOT = Path(__file__).parents[1]
STUCK = """
import signal
import subprocess
import pytest

@pytest.fixture
def never_taken_down():
    yield
    signal.pause()

def test_waits_for_ever():
    with subprocess.Popen(["sleep", "1000"]) as process:
        print("process", process.pid)
        process.wait()

def test_fails_and_is_never_taken_down(never_taken_down):
    assert not "a failure"
"""
TOLD = """
from pathlib import Path
import signal
import subprocess

from tests.signals import read_mask

def test_what_is_started_has_default_signals():
    told = subprocess.run(["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"], stdout=subprocess.PIPE).stdout
    assert {read_mask(line.split(b":")[1]) for line in told.splitlines()} == {0}

def test_this_process_goes_on_ignoring_what_it_did():
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.raise_signal(number)
"""
CONFTEST = """
from tests import time_limit
from tests.conftest import default_signals

time_limit._TAKE_DOWN_SECONDS = time_limit._AGAIN_SECONDS = 0.5

def pytest_configure(config):
    config.pluginmanager.register(time_limit)
"""


def run_tests(folder: Path, tests: str, *prefix: str) -> "subprocess.CompletedProcess[str]":
    """Run a file of tests as ours are run, under a program that starts it in some state."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--timeout", "1", "test_it.py"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [*prefix, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_test_that_waits_for_ever_fails_also_while_it_leaves_what_it_waits_for(tmp_path: Path) -> None:
    result = run_tests(tmp_path, STUCK)
    for line in result.stdout.splitlines():
        if line.startswith("process "):
            os.kill(int(line.split()[1]), signal.SIGKILL)
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout
    assert "Timeout (>1.0s) from pytest-timeout" in result.stdout
    assert "was not taken down within 0.5 s" in result.stdout


def test_tests_in_the_background_of_a_script_start_programs_that_can_be_interrupted(tmp_path: Path) -> None:
    ignoring = [each for name in ("SIGINT", "SIGHUP", "SIGQUIT") for each in ("--ignore", name)]
    prefix = (sys.executable, str(PROGRAMS / "unusual.py"), *ignoring, "--block", "SIGCHLD", "--")
    result = run_tests(tmp_path, TOLD, *prefix)
    assert result.returncode == pytest.ExitCode.OK, result.stdout
