"""A user who makes as many of the most expensive calls as they can, in a process of its own.

    python -m tests.hostile.greed CASE ENDPOINT USER PKI_DIR JOB_ID...

The calls are within the user's rights, or denied as such calls are. It prints a line when it begins, and the number of
answers when its standard input is closed.
"""

import contextlib
import itertools
import os
import socket
import ssl
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from worker_api.worker.v1 import (
    ExplainDecisionRequest,
    JobState,
    ListRequest,
    ShareRequest,
    SpawnRequest,
    StatusRequest,
    StopRequest,
    StreamLogRequest,
    WhoAmIRequest,
)

from tests.hostile.attacker import (
    DATA,
    HEADERS,
    RST_STREAM,
    Connection,
    Headers,
    Received,
    data_frame,
    message,
    request_headers,
    window_update,
)
from tests.raw import client_hello
from workerctl.target import Target

_LARGEST_WINDOW = (1 << 31) - 1
_WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 §6.5.2)
_USUAL_WINDOW = 65_535
_RENEW_BYTES = 1 << 30  # of a window, after which a new connection is opened
_END_STREAM = 1
_KEPT_OPEN = 500
_FOLLOWERS = 225  # over each of four connections
_FURTHER = 5  # calls at once, besides the followers

Request = tuple[Headers, bytes]


def large_statuses(job_ids: Sequence[str]) -> Iterator[Request]:
    """Ask for the status of a job with very many arguments."""
    while True:
        yield request_headers("Status"), bytes(StatusRequest(job_id=job_ids[0]))


def large_lists(job_ids: Sequence[str]) -> Iterator[Request]:
    """List as many jobs with very many arguments as a page may have."""
    del job_ids
    while True:
        yield request_headers("List"), bytes(ListRequest(page_size=1000))


def fruitless_lists(job_ids: Sequence[str]) -> Iterator[Request]:
    """List damaged jobs, where there are many jobs and none is damaged."""
    del job_ids
    while True:
        yield request_headers("List"), bytes(ListRequest(page_size=1000, states=[JobState.DAMAGED]))


def other_names(job_ids: Sequence[str]) -> Iterator[Request]:
    """Make calls for users whose names the daemon has to look for, all of them denied."""
    del job_ids
    for number in itertools.count():
        yield request_headers("WhoAmI", ("workerd-username", f"user-{number % 4000}")), bytes(WhoAmIRequest())


def small_calls(job_ids: Sequence[str]) -> Iterator[Request]:
    """Make the smallest call there is."""
    del job_ids
    while True:
        yield request_headers("WhoAmI"), bytes(WhoAmIRequest())


def unknown_jobs(job_ids: Sequence[str]) -> Iterator[Request]:
    """Ask for jobs that do not exist, on each of which a decision is made."""
    del job_ids
    while True:
        yield request_headers("Status"), bytes(StatusRequest(job_id=str(uuid.uuid4())))


def large_spawns(job_ids: Sequence[str]) -> Iterator[Request]:
    """Ask for jobs that are too large, with as many arguments as a request holds."""
    del job_ids
    data = bytes(SpawnRequest(program="true", args=["x"] * 250_000))
    while True:
        yield request_headers("Spawn"), data


def denied_spawns(job_ids: Sequence[str]) -> Iterator[Request]:
    """Ask for jobs with long arguments for another user, which is denied and goes into the audit trail."""
    del job_ids
    data = bytes(SpawnRequest(program="true", args=["x" * 60_000]))
    while True:
        yield request_headers("Spawn", ("workerd-username", "user-1")), data


def long_texts(job_ids: Sequence[str]) -> Iterator[Request]:
    """Send texts and lists that fill a request, in fields that hold short ones."""
    text = "\0" * 8_388_000
    share, issue = b"\x1a\x04stop" * 262_000, b"\x12\x04stop" * 262_000  # `rights`, which would take long to encode
    requests = (
        ("ExplainDecision", bytes(ExplainDecisionRequest(job_id=job_ids[0], right=text))),
        ("ExplainDecision", bytes(ExplainDecisionRequest(right="stop", user=text))),
        ("Spawn", bytes(SpawnRequest(program="true", envs={f"{text}=": ""}))),
        ("Share", bytes(ShareRequest(job_id=job_ids[0], user="ann")) + share),
        ("IssueCredential", issue),
    )
    for rpc, data in itertools.cycle(requests):
        yield request_headers(rpc), data


def spawns(job_ids: Sequence[str]) -> Iterator[Request]:
    """Start very many jobs."""
    del job_ids
    data = bytes(SpawnRequest(program="true"))
    while True:
        yield request_headers("Spawn"), data


def shares(job_ids: Sequence[str]) -> Iterator[Request]:
    """Share one job with very many users."""
    for number in itertools.count():
        user = str(uuid.UUID(int=(4 << 76) | (2 << 62) | number % 900))
        request = ShareRequest(job_id=job_ids[0], user=user, rights=["status"] if number // 900 % 2 == 0 else [])
        yield request_headers("Share"), bytes(request)


def followed_shares(job_ids: Sequence[str]) -> Iterator[Request]:
    """Follow a job very many times, then change and list its shares."""
    yield from itertools.repeat(
        (request_headers("StreamLog"), bytes(StreamLogRequest(job_id=job_ids[0], follow=True))), _FOLLOWERS
    )
    for number in itertools.count():
        user, rights = (("", []), ("user-1", ["status"]), ("user-1", []))[number % 3]
        yield request_headers("Share"), bytes(ShareRequest(job_id=job_ids[0], user=user, rights=rights))


def stops(job_ids: Sequence[str]) -> Iterator[Request]:
    """Stop jobs whose supervisors do not take the order."""
    for job_id in itertools.cycle(job_ids):
        yield request_headers("Stop"), bytes(StopRequest(job_id=job_id, grace=timedelta(0)))


def logs(job_ids: Sequence[str]) -> Iterator[Request]:
    """Read a long log."""
    while True:
        yield request_headers("StreamLog"), bytes(StreamLogRequest(job_id=job_ids[0]))


def mixed(job_ids: Sequence[str]) -> Iterator[Request]:
    """Make calls of all kinds."""
    yield from itertools.chain.from_iterable(
        zip(*(make(job_ids) for make in (large_statuses, large_lists, other_names, shares, spawns)), strict=True)
    )


@dataclass(frozen=True)
class Press:
    """What one user does over each connection.

    Attributes:
        target: the daemon, as the user sees it.
        requests: what to call.
        at_once: how many calls are under way.
        answers: has an item for each answer.
    """

    target: Target
    context: ssl.SSLContext
    requests: Iterator[Request]
    at_once: int
    answers: list[int]

    def connect(self) -> Connection:
        """Open a connection."""
        return Connection(self.target, self.context)

    def begin(self, connection: Connection, window: int) -> None:
        """Make the first calls.

        Args:
            window: how many bytes of an answer the daemon may send unasked.
        """
        connection.open({_WINDOW: window})
        connection.send(window_update(0, _LARGEST_WINDOW - _USUAL_WINDOW))
        connection.send(b"".join(_frames(connection, *next(self.requests)) for _ in range(self.at_once)))
        _say_begun()


def call(press: Press) -> None:
    """Make the next call when one is answered, over a new connection when one has taken very much."""
    with press.connect() as connection:
        press.begin(connection, _LARGEST_WINDOW)
        taken = 0
        for frame in connection.received():
            taken += len(frame.payload) if frame.kind == DATA else 0
            if _ends(frame):
                press.answers.append(1)
                connection.send(_frames(connection, *next(press.requests)))
            if taken > _RENEW_BYTES:
                return


def follow_and_call(press: Press) -> None:
    """Make as many calls as there may be, wait for the first output of each, and make a few more."""
    with press.connect() as connection:
        connection.open({_WINDOW: _LARGEST_WINDOW})
        connection.send(window_update(0, _LARGEST_WINDOW - _USUAL_WINDOW))
        connection.send(b"".join(_frames(connection, *next(press.requests)) for _ in range(press.at_once)))
        frames = connection.received()
        outputs = (frame for frame in frames if frame.kind == DATA and frame.payload)
        for _ in zip(range(press.at_once), outputs, strict=False):
            pass
        _say_begun()
        connection.send(b"".join(_frames(connection, *next(press.requests)) for _ in range(_FURTHER)))
        for frame in frames:
            if _ends(frame):
                press.answers.append(1)
                connection.send(_frames(connection, *next(press.requests)))


def leave_unread(press: Press) -> None:
    """Make calls and read no answer."""
    with press.connect() as connection:
        press.begin(connection, _USUAL_WINDOW)
        threading.Event().wait()


def take_single_bytes(press: Press) -> None:
    """Take the answers byte by byte."""
    with press.connect() as connection:
        press.begin(connection, 1)
        for frame in connection.received():
            if _ends(frame):
                press.answers.append(1)
                connection.send(_frames(connection, *next(press.requests)))
            elif frame.kind == DATA and frame.payload:
                connection.send(window_update(frame.stream_id, len(frame.payload)))


def send_more(press: Press) -> None:
    """Send data behind complete requests, as much as the daemon takes."""
    with press.connect() as connection:
        connection.open()
        _say_begun()
        while True:
            for _ in range(press.at_once):
                headers, data = next(press.requests)
                stream_id = connection.take_stream()
                behind = data_frame(stream_id, bytes(1 << 14), end=False) * 3
                begun = connection.headers(stream_id, headers) + data_frame(stream_id, message(data), end=False)
                if not connection.send(begun + behind):
                    return
            press.answers.append(1)
            connection.is_alive(b"send_mor")


def upload(press: Press) -> None:
    """Make one call after the other, each as fast as the daemon's windows let through."""
    with press.connect() as connection:
        connection.open()
        _say_begun()
        for headers, data in press.requests:
            if connection.call(headers, message(data)).closed:
                return
            press.answers.append(1)


def shake_hands(press: Press) -> None:
    """Open connections, and close each when it is made."""
    while True:
        with press.connect() as connection:
            connection.open()
            press.answers.append(1)
            _say_begun()


def connect_and_leave(press: Press) -> None:
    """Open connections without a certificate, say nothing on them, and close each a little later."""
    _connect_on_and_on(press, b"")


def begin_to_shake_hands(press: Press) -> None:
    """Open connections without a certificate, and close each a little after the first message of TLS."""
    _connect_on_and_on(press, client_hello(press.context))


def _connect_on_and_on(press: Press, first: bytes) -> None:
    address = ("127.0.0.1", press.target.resolve()[1])
    opened: deque[socket.socket] = deque()
    _say_begun()
    while True:
        connection = socket.socket()
        opened.append(connection)
        connection.setblocking(False)
        connection.connect_ex(address)
        if len(opened) > _KEPT_OPEN:
            opened.popleft().close()
            press.answers.append(1)
        if first and len(opened) > _KEPT_OPEN // 2:
            with contextlib.suppress(OSError):  # not connected yet, or refused
                opened[_KEPT_OPEN // 2].send(first)


@dataclass(frozen=True)
class Case:
    """What one user does: what is called, how, over how many connections, and how many calls of each are under way."""

    requests: Callable[[Sequence[str]], Iterator[Request]]
    connections: int
    at_once: int
    how: Callable[[Press], None] = call


CASES = {
    "stopped_supervisors": Case(stops, 4, 50),
    "frozen_jobs": Case(stops, 4, 50),
    "large_lists": Case(large_lists, 4, 10),
    "fruitless_lists": Case(fruitless_lists, 4, 100),
    "large_statuses": Case(large_statuses, 4, 60),
    "unread_statuses": Case(large_statuses, 4, 900, leave_unread),
    "unread_lists": Case(large_lists, 4, 900, leave_unread),
    "other_names": Case(other_names, 4, 200),
    "shares": Case(shares, 4, 125),
    "followed_shares": Case(followed_shares, 4, _FOLLOWERS, follow_and_call),
    "denied_spawns": Case(denied_spawns, 4, 50),
    "data_behind_requests": Case(small_calls, 4, 40, send_more),
    "single_bytes": Case(large_statuses, 4, 200, take_single_bytes),
    "small_calls": Case(small_calls, 8, 300),
    "unknown_jobs": Case(unknown_jobs, 4, 500),
    "large_spawns": Case(large_spawns, 4, 4),
    "long_texts": Case(long_texts, 4, 1, upload),
    "spawns": Case(spawns, 4, 50),
    "long_logs": Case(logs, 4, 240),
    "handshakes": Case(small_calls, 8, 0, shake_hands),
    "silent_connections": Case(small_calls, 1, 0, connect_and_leave),
    "begun_handshakes": Case(small_calls, 1, 0, begin_to_shake_hands),
    "many_connections": Case(mixed, 150, 10),
}


def _frames(connection: Connection, headers: Headers, data: bytes) -> bytes:
    """Make the frames of one call on a new stream."""
    stream_id, data = connection.take_stream(), message(data)
    pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
    parts = [connection.headers(stream_id, headers)]
    parts += (data_frame(stream_id, piece, end=number == len(pieces)) for number, piece in enumerate(pieces, 1))
    return b"".join(parts)


def _ends(frame: Received) -> bool:
    """Return whether a frame is the last of a call."""
    return frame.kind == RST_STREAM or (frame.kind in (DATA, HEADERS) and bool(frame.flags & _END_STREAM))


def _say_begun() -> None:
    sys.stdout.write("begun\n")
    sys.stdout.flush()


def _repeat(how: Callable[[Press], None], press: Press) -> None:
    while True:
        with contextlib.suppress(OSError):
            how(press)


def main(name: str, endpoint: str, user: str, pki: str, *job_ids: str) -> None:
    """Make calls until standard input is closed."""
    case, target, answers = CASES[name], Target(endpoint, user, Path(pki)), list[int]()
    context = target.tls()
    for _ in range(case.connections):
        press = Press(target, context, case.requests(job_ids), case.at_once, answers)
        threading.Thread(target=_repeat, args=(case.how, press), daemon=True).start()
    sys.stdin.read()
    print(len(answers), flush=True)
    os._exit(0)  # the threads wait for answers


if __name__ == "__main__":
    main(*sys.argv[1:])
