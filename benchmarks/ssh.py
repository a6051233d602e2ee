"""The peer: a real sshd on loopback with keys that are thrown away, which reads and changes nothing of the host's."""

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PRIVILEGE_SEPARATION = Path("/run/sshd")  # where Debian's sshd wants an empty folder when root runs it
_HOST = "peer"
_MULTIPLEXED = "multiplexed"

_SERVER_CONFIGURATION = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
PermitUserRC no
SetEnv HOME={folder}
MaxStartups 200
MaxSessions 200
LogLevel ERROR
"""

_CLIENT_CONFIGURATION = """\
Host {host} {multiplexed}
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/user
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
Host {multiplexed}
    ControlPath {folder}/control
"""


class SshUnavailable(Exception):
    """There is no ssh to compare with, for the reason that it says."""


@dataclass(frozen=True, slots=True)
class Ssh:
    """A running sshd and how to reach it."""

    folder: Path

    def command(self, *remote: str, options: tuple[str, ...] = (), host: str = _HOST) -> list[str]:
        """Make the command line that runs a program there, over a connection of its own."""
        return ["ssh", "-F", str(self.folder / "client"), *options, host, *map(shlex.quote, remote)]

    @contextlib.contextmanager
    def multiplexed(self) -> Iterator[list[str]]:
        """Hold a connection open (ControlMaster), and give the beginning of a command line that uses it."""
        master = self.command(
            options=("-M", "-N", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo open"), host=_MULTIPLEXED
        )
        with subprocess.Popen(master, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                if process.stdout is None or process.stdout.readline() != b"open\n":
                    raise SshUnavailable("the multiplexed connection did not open")
                yield self.command(host=_MULTIPLEXED, options=("-o", "ProxyCommand=false"))  # through it or not at all
            finally:
                process.terminate()

    def cipher(self) -> str:
        """Tell which cipher the two agree on by themselves."""
        command = self.command("true", options=("-o", "LogLevel=DEBUG1"))
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        [line] = [line for line in said.splitlines() if "kex: server->client cipher:" in line]
        return line.partition("cipher: ")[2].split()[0]


def version() -> str:
    """Tell which ssh this is."""
    return subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()


@contextlib.contextmanager
def running_sshd(folder: Path) -> Iterator[Ssh]:
    """Run sshd for as long as the context lasts.

    Args:
        folder: for keys and configuration; it is made.

    Raises:
        SshUnavailable: a program is missing, or nobody can log in.
    """
    sshd = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    for name, found in (("sshd", sshd), ("ssh", shutil.which("ssh")), ("ssh-keygen", shutil.which("ssh-keygen"))):
        if found is None:
            raise SshUnavailable(f"{name} is not installed: Debian has it in openssh-server")
    _lay_out(folder)
    with _privilege_separation():
        log = folder / "log"
        process = subprocess.Popen([str(sshd), "-D", "-f", str(folder / "server"), "-E", str(log)])
        try:
            ssh = Ssh(folder)
            # It is up long before the second attempt, a second later.
            first = ssh.command("true", options=("-o", "ConnectionAttempts=5"))
            said = subprocess.run(first, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if said.returncode != 0:
                raise SshUnavailable(f"logging in failed: {said.stderr.strip()} {log.read_text().strip()}")
            yield ssh
        finally:
            process.terminate()
            process.wait()


def _lay_out(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {"folder": folder, "port": port, "user": getpass.getuser(), "host": _HOST, "multiplexed": _MULTIPLEXED}
    (folder / "server").write_text(_SERVER_CONFIGURATION.format(**names))
    (folder / "client").write_text(_CLIENT_CONFIGURATION.format(**names))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")


@contextlib.contextmanager
def _privilege_separation() -> Iterator[None]:
    if os.geteuid() != 0 or _PRIVILEGE_SEPARATION.exists():
        yield
        return
    _PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    try:
        yield
    finally:
        _PRIVILEGE_SEPARATION.rmdir()
