"""What the tests with grpcio share: the contract as the official compiler has it, a client, and a log of megabytes."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from pki.files import key_path
from tests.daemon import USER, Daemon
from tests.peers.grpcio_peer import SECONDS, STDERR_BYTES, STDOUT_BYTES, Peer, Printed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What the official compiler makes of api.proto: the modules of its messages and of its stubs."""
    tree = tmp_path_factory.mktemp("grpcio")
    (tree / "worker" / "v1").mkdir(parents=True)
    shutil.copy(ROOT / "api.proto", tree / "worker" / "v1")
    compiler = (sys.executable, "-m", "grpc_tools.protoc", f"-I{tree}", f"--python_out={tree}")
    subprocess.run([*compiler, f"--grpc_python_out={tree}", "worker/v1/api.proto"], check=True, timeout=SECONDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tree)
        return importlib.import_module("worker.v1.api_pb2"), importlib.import_module("worker.v1.api_pb2_grpc")


@pytest.fixture(scope="module")
def peer(shared_daemon: Daemon, compiled: tuple[Any, Any]) -> Iterator[Peer]:
    """A client of the module's daemon."""
    pb, stubs = compiled
    certificate = shared_daemon.pki.client_certificate(USER)
    credentials = grpc.ssl_channel_credentials(
        shared_daemon.pki.server_ca.read_bytes(), key_path(certificate).read_bytes(), certificate.read_bytes()
    )
    address = shared_daemon.endpoint.removeprefix("https://")
    with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0)]) as channel:
        yield Peer(channel, pb, stubs.WorkerServiceStub(channel))


@pytest.fixture(scope="module")
def printed(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A job that wrote some megabytes of noise to both streams at once, and has ended."""
    folder = tmp_path_factory.mktemp("printed")
    out, err = folder / "out", folder / "err"
    job_id = peer.spawn(
        *("sh", "-c", 'head -c "$1" /dev/urandom | tee "$2" & head -c "$3" /dev/urandom | tee "$4" >&2; wait', "sh"),
        *(str(STDOUT_BYTES), str(out), str(STDERR_BYTES), str(err)),
    )
    outputs = [event.output for event in peer.events(job_id, follow=True)[:-1]]
    return Printed(job_id, out.read_bytes(), err.read_bytes(), b"".join(output.data for output in outputs))
