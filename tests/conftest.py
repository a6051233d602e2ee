"""What tests share: an engine, a daemon, programs for jobs to run, and the seed of what is drawn (`--seed`)."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests import time_limit
from tests.daemon import Daemon, end_jobs, running_daemon
from tests.freezing import Freezer, making_freezer
from tests.signals import restore_for_children
from workerd.engine.engine import Engine

PROGRAMS = Path(__file__).parent / "programs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="Repeat what was drawn in the run with this seed.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(time_limit)
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: repeat what is drawn with `--seed {config.option.seed}`"


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> None:
    """Start everything with the default effect of each signal. In workers alone: Ctrl-C is the affair of their main."""
    restore_for_children()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    return int(request.config.option.seed)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine of its own, whose jobs are ended afterwards."""
    async with Engine(tmp_path / "state") as engine:
        yield engine
    end_jobs(tmp_path / "state")


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    """A cgroup whose processes no signal ends while it is frozen."""
    with making_freezer() as freezer:
        yield freezer


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of its own."""
    with running_daemon(tmp_path / "state") as daemon:
        yield daemon


@pytest.fixture(params=["1", "2"], ids=["one process", "several processes"])
def any_daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of its own, one of each kind."""
    with running_daemon(tmp_path / "state", "--processes", request.param) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for all tests of a module that do not harm it."""
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state") as daemon:
        yield daemon
