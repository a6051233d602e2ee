"""The jobs of a scene: what each prints, how it ends, and who owns it, all known before it runs."""

import base64
import enum
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random

from worker_api.worker.v1 import SpawnRequest

from tests.daemon import USER
from workerd.engine.job import Stream

OTHER_USER, ADMIN = "zoe", "chief"
MAX_LOG_BYTES = 4 << 20
TIMEOUT_SECONDS = 2.0
_OUT, _ERR = 1, 2
_KIB = 1 << 10
_PRINTER = Path(__file__).with_name("printer.py")


class Ending(enum.StrEnum):
    """How a job ends."""

    EXIT = "exit"
    KILLED = "kill"
    TIMED_OUT = "timed out"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Script:
    """What one job does.

    Attributes:
        label: the job's name and request key, and what it is called in every description.
        steps: descriptor and bytes of each write; descriptor 0 stands for waiting at a FIFO.
        value: the exit code or the signal.
        paced: whether each write waits until the one before was captured, so that the order of the streams is known.
        limited: whether its log has a limit, and its beginning is released.
        rights: those that the other user is given.
    """

    label: str
    steps: tuple[tuple[int, bytes], ...] = ()
    ending: Ending = Ending.EXIT
    value: int = 0
    paced: bool = False
    limited: bool = False
    rights: tuple[str, ...] = ()
    owner: str = USER

    def printed(self, stream: Stream) -> bytes:
        """Return every byte that the job prints to a stream."""
        return b"".join(data for descriptor, data in self.steps if descriptor == stream)

    def write(self, folder: Path) -> list[str]:
        """Write the program's script into a folder and return the command line."""
        path = folder / f"{self.label}.json"
        ends_itself = self.ending in (Ending.EXIT, Ending.KILLED)
        steps = [(descriptor, base64.b64encode(data).decode()) for descriptor, data in self.steps]
        ending = (self.ending if ends_itself else "wait", self.value)
        path.write_text(json.dumps({"steps": steps, "paced": self.paced, "ending": ending}))
        return [sys.executable, "-I", "-S", str(_PRINTER), str(path)]

    def request(self, folder: Path) -> SpawnRequest:
        """Return the request that starts the job, for a client of its owner's."""
        program, *args = self.write(folder)
        return SpawnRequest(
            program=program,
            args=args,
            envs={"GREETING": "Zoë"},
            working_directory="/",
            name=self.label,
            request_key=self.label,
            max_log_bytes=MAX_LOG_BYTES if self.limited else 0,
            timeout=timedelta(seconds=TIMEOUT_SECONDS) if self.ending is Ending.TIMED_OUT else None,
        )


def scripts() -> list[Script]:
    """Return the scripts of all jobs of a scene."""
    made = [*_plain(), *_with_endings(), *_long(), *_released(), *_of_owners()]
    assert len({script.label for script in made}) == len(made)
    return made


def _plain() -> Iterator[Script]:
    yield Script("silent")
    yield Script("silent-shared", rights=("status",))
    yield Script("greets", ((_OUT, b"hello\n"),))
    yield Script("prints-one-byte", ((_OUT, b"x"),))
    yield Script("complains", ((_ERR, b"a warning\nand another\n"),))
    yield Script("complains-at-length", ((_ERR, _binary("complaint", 90 * _KIB)),))
    yield Script("prints-blanks", ((_OUT, bytes(20 * _KIB)),))
    yield Script("both", ((_OUT, b"to stdout\n"), (_ERR, b"to stderr\n")), paced=True)
    yield Script("binary", ((_OUT, bytes(range(256)) * 64),))
    yield Script("random", ((_OUT, _binary("random", 50_000)),))
    for number, writes in enumerate((3, 40, 400, 2000)):
        yield Script(f"alternates-{number}", tuple(_alternating(f"alternates-{number}", writes)), paced=True)
    for number in range(4):
        yield Script(f"prints-lines-{number}", ((_OUT, _lines(number, 300 * (number + 1))),))


def _with_endings() -> Iterator[Script]:
    for code in (1, 2, 7, 42, 126, 255):
        yield Script(f"exits-with-{code}", ((_OUT, b"about to fail\n" * code),), value=code)
    yield Script("exits-silently-with-3", value=3)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
        yield Script(f"killed-by-{number.name}", ((_ERR, b"about to die\n" * 9),), Ending.KILLED, number.value)
    for ending in (Ending.TIMED_OUT, Ending.STOPPED, Ending.LOST):
        name = ending.replace(" ", "-")
        yield Script(f"{name}-silently", (), ending)
        yield Script(f"{name}-with-output", tuple(_alternating(name, 30)), ending, paced=True)
        yield Script(f"{name}-with-much", ((_OUT, _binary(name, 150 * _KIB)),), ending)


def _long() -> Iterator[Script]:
    for number, size in enumerate((200 * _KIB, 333_333, 512 * _KIB, 700_001)):
        yield Script(f"long-{number}", ((_OUT, _binary(f"long-{number}", size)), (_ERR, _lines(number, 50))))


def _released() -> Iterator[Script]:
    much = _binary("much", 5 << 20)
    yield Script("released", ((_OUT, much), (_ERR, _binary("more", 600 * _KIB))), limited=True)
    yield Script("released-exits-with-5", ((_ERR, much[::-1]), (_OUT, b"done\n")), value=5, limited=True)
    yield Script("released-and-lost", ((_OUT, much[7:]),), Ending.LOST, limited=True)


def _of_owners() -> Iterator[Script]:
    for number in range(3):
        yield Script(
            f"shared-{number}", ((_OUT, _lines(number, 40)),), rights=("stop", "stream-log", "remove")[number:]
        )
    for number in range(4):
        yield Script(f"of-another-{number}", ((_OUT, _lines(number, 70)),), value=number, owner=OTHER_USER)


def _binary(seed: str, size: int) -> bytes:
    return Random(seed).randbytes(size)


def _lines(seed: int, count: int) -> bytes:
    return b"".join(b"line %d of job %d\n" % (number, seed) for number in range(count))


def _alternating(seed: str, count: int) -> Iterator[tuple[int, bytes]]:
    random = Random(seed)
    for number in range(count):
        yield 1 + number % 2, random.randbytes(random.randint(1, 120))
