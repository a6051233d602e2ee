"""What tests of whole programs share besides a daemon: the authority that signs the users of it."""

import pytest

from pki.authority import Credential
from pki.files import load_pair
from tests.daemon import Daemon


@pytest.fixture
def authority(shared_daemon: Daemon) -> Credential:
    """The authority that signs the users of the module's daemon."""
    return load_pair(shared_daemon.pki.client_ca)
