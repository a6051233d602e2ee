"""What client and daemon must have in common, though neither may import the other."""

import socket
from pathlib import Path

import pytest

from workerctl import own_daemon
from workerd.listening import advertise
from workerd.settings import default_state_directory


@pytest.mark.parametrize("surroundings", [{}, {"XDG_STATE_HOME": "/elsewhere"}], ids=["home", "XDG_STATE_HOME"])
def test_both_look_for_the_users_own_state_in_the_same_place(
    monkeypatch: pytest.MonkeyPatch, surroundings: dict[str, str]
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert own_daemon.state_directory() == default_state_directory()


def test_the_client_understands_how_the_daemon_says_where_it_serves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the line that it prints, and in the note that it leaves, which counts for as long as the daemon holds it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = own_daemon.state_directory()
    state.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as bound, advertise(state, bound):
        said = capfd.readouterr().out.encode()
        assert said.startswith(own_daemon._SAID_WHEN_SERVING)
        assert own_daemon.find() == f"https://127.0.0.1:{bound.getsockname()[1]}"
    assert own_daemon.find() is None
    (state / "endpoint").write_text("https://localhost:1\n")
    assert own_daemon.find() is None
