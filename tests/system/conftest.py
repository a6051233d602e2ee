"""What tests of whole programs share besides a daemon: the authority that signs its users, and the code before it."""

import pytest

from pki.authority import Credential
from pki.files import load_pair
from tests.daemon import Daemon
from tests.older import FORMAT_2, HistoryMissing, OlderCode, check_out


@pytest.fixture
def authority(shared_daemon: Daemon) -> Credential:
    """The authority that signs the users of the module's daemon."""
    return load_pair(shared_daemon.pki.client_ca)


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> OlderCode:
    """The last code of format 2, out of the repository's history."""
    try:
        return check_out(FORMAT_2, tmp_path_factory.mktemp("older") / "tree")
    except HistoryMissing as error:
        pytest.skip(f"the code of {FORMAT_2[:7]} is not in the history here: {error}")
