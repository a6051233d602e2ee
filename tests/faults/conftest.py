"""The seed of a run: given with `--seed`, or drawn; told at the start, and again with the figures at the end."""

import secrets

import pytest

FIGURES = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="Repeat the schedule of faults of this seed.")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(1 << 32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: repeat with `nox -s faults -- --seed {config.option.seed}`"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(
        f"seed {config.option.seed}: {config.stash.get(FIGURES, 'the run did not come to its end')}"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    return int(request.config.option.seed)
