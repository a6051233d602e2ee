"""From the command line to the request."""

from typing import Any

import pytest

from workerctl.errors import UsageInvalid
from workerctl.spawning import JobOptions


def test_options_and_what_stands_after_the_dashes_mean_the_same() -> None:
    shared: dict[str, Any] = {
        "envs": ["A=1", "B=x=y"],
        "working_directory": "/sys",
        "name": "label",
        "timeout_seconds": 1.5,
    }
    options = JobOptions(program_path="/bin/echo", args=["hi", "man"], **shared).request((), "key")
    dashes = JobOptions(**shared).request(("/bin/echo", "hi", "man"), "key")
    assert options == dashes
    assert dashes.envs == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ((), JobOptions()),
        (("a",), JobOptions(program_path="b")),
        (("a",), JobOptions(args=["b"])),
        (("a",), JobOptions(envs=["A"])),
    ],
    ids=["no program", "two programs", "arguments twice", "no value"],
)
def test_what_cannot_be_is_refused(command: tuple[str, ...], options: JobOptions) -> None:
    with pytest.raises(UsageInvalid):
        options.request(command, "")
