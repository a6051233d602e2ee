"""The options of a run, its scene, and its figures at the end."""

from pathlib import Path

import pytest

FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", type=int, default=1100, help="How many mutations there are.")
    parser.addoption("--only", default="", help="Only the mutations with these numbers, with commas between them.")
    parser.addoption("--limit-seconds", type=float, default=10.0, help="How long any call may take.")
    parser.addoption("--report", type=Path, default=None, help="Write all problems into this file.")
    parser.addoption("--scene", type=Path, default=None, help="Keep the undamaged state directory here, or use it.")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines that are printed at the end of the run."""
    lines = request.config.stash[FIGURES] = []
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(line)
