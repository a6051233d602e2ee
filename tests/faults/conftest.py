"""The figures of a run, told at its end with its seed."""

import pytest

FIGURES = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(
        f"seed {config.option.seed}: {config.stash.get(FIGURES, 'the run did not come to its end')}"
    )
