"""The options `--cuts` and `--keep`, what tests of power cuts share, and the table of what was counted."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.power.disk import DiskFailed, find_obstacle, memory
from tests.power.recorder import compile_recorder
from tests.power.verdict import Verdict, format_table

VERDICTS = pytest.StashKey[dict[str, Verdict]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuts", type=int, default=200, help="How often the power is cut on each file system.")
    parser.addoption("--keep", type=Path, help="Where to keep the disks of the first cuts that show something wrong.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[VERDICTS] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if verdicts := config.stash[VERDICTS]:
        terminalreporter.section(f"power cuts, seed {config.option.seed}")
        terminalreporter.write_line(format_table(verdicts))


@pytest.fixture
def cut_count(request: pytest.FixtureRequest) -> int:
    """How often the power is to be cut."""
    return int(request.config.option.cuts)


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Path | None:
    """Where disks are to be kept that show something wrong."""
    path: Path | None = request.config.option.keep
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that records what is written to a disk."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    return compile_recorder(tmp_path_factory.mktemp("recorder"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, for images of disks."""
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(memory(tmp_path / "memory"))
        except DiskFailed as error:
            pytest.skip(str(error))
        yield path


@pytest.fixture
def verdicts(request: pytest.FixtureRequest) -> dict[str, Verdict]:
    """The verdicts that are told at the end, by disk."""
    return request.config.stash[VERDICTS]
