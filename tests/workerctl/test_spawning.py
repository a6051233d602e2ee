"""From the command line to the request."""

import pytest

from workerctl.errors import UsageInvalid
from workerctl.spawning import make_request


def test_options_and_what_stands_after_the_dashes_mean_the_same() -> None:
    options = make_request((), "/bin/echo", ["hi", "man"], ["A=1", "B=x=y"], "/sys", "label", 1.5)
    dashes = make_request(("/bin/echo", "hi", "man"), "", None, ["A=1", "B=x=y"], "/sys", "label", 1.5)
    assert options == dashes
    assert dashes.envs == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize(
    ("command", "path", "args", "envs"),
    [((), "", None, None), (("a",), "b", None, None), (("a",), "", ["b"], None), (("a",), "", None, ["A"])],
    ids=["no program", "two programs", "arguments twice", "no value"],
)
def test_what_cannot_be_is_refused(
    command: tuple[str, ...], path: str, args: list[str] | None, envs: list[str] | None
) -> None:
    with pytest.raises(UsageInvalid):
        make_request(command, path, args, envs, "", "", None)
