"""The figures of attacks, told at the end of a run."""

from collections.abc import Callable

import pytest

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Have something said at the end of the run, after the name of the test."""
    lines = request.config.stash.setdefault(_FIGURES, [])
    return lambda figure: lines.append(f"{request.node.name}: {figure}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section(f"what the daemon was sent, and what it took (seed {config.option.seed})")
        for line in lines:
            terminalreporter.write_line(line)
