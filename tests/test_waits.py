"""Every wait has a limit, or an entry here with the reason why not. docs/security.md has the limits."""

from pathlib import Path

import pytest

from tests.waits import find_waits, find_waits_below

ROOT = Path(__file__).parents[1]
PACKAGES = ("audit", "pki", "system", "workerctl", "workerd")

_WORK = "it is this process's work, and lasts as long as the process"
_JOB = "as long as the job runs"
_CALLER = "every caller has a limit around it"
_OWN = "a task of this process that was cancelled just before"
_NEWS = "it waits for the next change, and is cancelled by its owner"
_READY = "the descriptor does not block, or poll(2) has said that there is something"
_SCAN = "each job is taken up by itself, and its waits have limits"
_SERVICE = "the C library has the limit of the machine's directory service; the daemon asks it at its start"
_USER = "it is the user's terminal, or the program that the user pipes the output into"

WITHOUT_LIMIT = {
    "audit/walk.py _lines: file.readline": "a regular file",
    "system/ownership.py _group_name: grp.getgrgid": _SERVICE,
    "system/ownership.py _home: pwd.getpwuid": _SERVICE,
    "system/ownership.py _is_private: grp.getgrgid": _SERVICE,
    "system/ownership.py _is_private: pwd.getpwall": _SERVICE,
    "system/ownership.py _is_private: pwd.getpwnam": _SERVICE,
    "system/ownership.py account_name: pwd.getpwuid": _SERVICE,
    "workerctl/__main__.py _leave: thread.join": "as Python does at its end: a thread of a plugin's has work to do",
    "workerctl/client.py Client._connect: asyncio.to_thread": "starting the own daemon, which has limits of its own",
    "workerctl/client.py Client._connect: with self._connecting": "another call makes the same connection within them",
    "workerctl/commands/credential.py issue: asyncio.to_thread": "starting the own daemon, which has limits of its own",
    "workerctl/commands/run.py Interrupts.__aexit__: asyncio.wait": "calls, which have limits of their own",
    "workerctl/own_daemon.py _options: getpass.getuser": _SERVICE,
    "workerctl/own_daemon.py _read_line: os.read": _READY,
    "workerctl/own_daemon.py _refuse: pwd.getpwuid": _SERVICE,
    "workerctl/target.py _login_name: getpass.getuser": _SERVICE,
    "workerctl/transport.py WorkerChannel.aclose: self._last.lost.wait": "the event loop closes what was aborted",
    "workerctl/transport.py WorkerChannel.receive: buffer._unacked.get": "the keepalive ends a silent connection",
    "workerctl/writer.py Writer.__init__: threading.Thread(target=self._work, name='writer', daemon=True).start": (
        "without memory for its only thread the client can do nothing"
    ),
    "workerctl/writer.py Writer._wait: self._progress.wait": _USER,
    "workerctl/writer.py Writer._work: self._orders.get": _WORK,
    "workerctl/writer.py write_all: writable.poll": _USER,
    "workerd/access/following.py _follow: asyncio.wait_for": _NEWS,
    "workerd/access/following.py _follow: changed.wait": _NEWS,
    "workerd/access/lasting.py _watch: changed.wait": _NEWS,
    "workerd/access/users.py Users._refresh: with self._refreshing": "another thread reads small files of the daemon's",
    "workerd/api_process.py _serve: drained.wait": _WORK,
    "workerd/api_process.py _serve: stop.wait": _WORK,
    "workerd/drain.py _wait: select.select": "as long as jobs run; Ctrl-C leaves it",
    "workerd/engine/account.py find_account: os.getgrouplist": _CALLER,
    "workerd/engine/account.py find_account: pwd.getpwnam": _CALLER,
    "workerd/engine/account.py find_account: pwd.getpwuid": _CALLER,
    "workerd/engine/account.py own_account: pwd.getpwuid": _SERVICE,
    "workerd/engine/capture.py Capture._fill: os.readv": _READY,
    "workerd/engine/control.py Control.read: os.read": _READY,
    "workerd/engine/engine.py Engine.read_log: changed.wait": _JOB,
    "workerd/engine/keeper.py Keeper._end: with self._turns": "other jobs are brought to their ends, within limits",
    "workerd/engine/keeper.py Keeper._wait_changed: self._changed.wait": _JOB,
    "workerd/engine/keeper.py Keeper._retain: await asyncio.shield(self._scanning)": _SCAN,
    "workerd/engine/keeper.py Keeper.wait_scanned: await asyncio.shield(self._scanning)": _SCAN,
    "workerd/engine/keeper.py Keeper.wait_gone: self._gone.wait": _WORK,
    "workerd/engine/launcher.py Launcher._ask: asyncio.wait": _OWN,
    "workerd/engine/launcher.py Launcher._request: with self._sending": _CALLER,
    "workerd/engine/launcher.py _receive: readable.wait": _CALLER,
    "workerd/engine/launcher.py _receive: there.recv": _READY,
    "workerd/engine/launcher.py _wait_started: asyncio.wait": _OWN,
    "workerd/engine/launcher.py _wait_writable: writable.wait": _CALLER,
    "workerd/engine/process_end.py wait_end: ended.wait": _CALLER,
    "workerd/engine/remains.py _Handles.give_up: with self._lock": "held for closing a few descriptors",
    "workerd/engine/remains.py _Handles.put: with self._lock": "held for closing a few descriptors",
    "workerd/engine/program.py _read_report: os.read": _READY,
    "workerd/engine/program.py start: open": "a pipe whose reader is there or has gone, and which has room",
    "workerd/engine/program.py start: os.waitpid": "a child that has said that it ends",
    "workerd/engine/remains.py _wait_empty: changed.wait": _CALLER,
    "workerd/engine/shelf.py Shelf.wait_unlocked: closed.wait": _JOB,
    "workerd/engine/spawner.py Spawner._wait_started: changed.wait": _CALLER,
    "workerd/engine/spawner.py Spawner.aclose: asyncio.wait": _OWN,
    "workerd/engine/spawner.py Spawner.spawn: await asyncio.shield(spawning.task)": "each of its steps has a limit",
    "workerd/engine/supervisor.py Supervisor.run: os.read": _READY,
    "workerd/engine/supervisor.py Supervisor.run: self._epoll.poll": _WORK,
    "workerd/engine/supervisor.py _may_go_on: os.read": _READY,
    "workerd/engine/threads.py Threads.run: self._turns.acquire": "a kind of work may be given none: see there",
    "workerd/engine/threads.py Threads.run: await asyncio.shield(done)": "a kind of work may be given none: see there",
    "workerd/engine/zygote.py serve: socket.recv_fds": _WORK,
    "workerd/gate.py Gate._method.serve: asyncio.wait": "the call itself, whose waits have limits",
    "workerd/listening.py bind: socket.getaddrinfo": _SERVICE,
    "workerd/network/receiving.py receive: asyncio.get_running_loop().run_in_executor": "work of the processor alone",
    "workerd/network/request_buffer.py RequestBuffer.read: self._changed.wait": _CALLER,
    "workerd/network/receiving.py start_decoder: _decoder.submit(int).result": "at the start, before it serves",
    "workerd/network/transport.py wait_for_room: raw.connection.write_ready.wait": "the keepalive ends the connection",
    "workerd/network/transport.py wait_for_room: raw.window_updated.wait": "the keepalive ends the connection",
    "workerd/pace.py Pace.step: await waiter": "steps of the same user's calls, which are short",
    "workerd/processes.py ApiProcesses._note_end: with self._changed": "held for a few statements",
    "workerd/processes.py ApiProcesses._note_serving: with self._changed": "held for a few statements",
    "workerd/processes.py ApiProcesses.end: with self._changed": "held for a few statements",
    "workerd/processes.py ApiProcesses.wait_serving: self._changed.wait_for": "the signal to end calls it off",
    "workerd/processes.py ApiProcesses.wait_serving: with self._changed": "held for a few statements",
    "workerd/processes.py ApiProcesses.run: asyncio.wait": _WORK,
    "workerd/processes.py _read_to_end: await done": "a process that does not come to serve ends with the daemon",
    "workerd/processes.py _serve: asyncio.wait": "it ends with the processes, which were ended within a limit",
    "workerd/processes.py _serve: stop.wait": _WORK,
    "workerd/server.py _own_name: getpass.getuser": _SERVICE,
    "workerd/server.py serve: stop.wait": _WORK,
    "workerd/trail/witness.py JournalWitness.keep: journal.connect": _READY,
    "workerd/trail/witness.py JournalWitness.keep: journal.send": _READY,
    "workerd/trail/writer.py AuditTrail._find_end: os.read": "a regular file",
    "workerd/waiting.py meanwhile: asyncio.wait": _OWN,
    "workerd/waiting.py wait_first: asyncio.wait": _CALLER,
}


def test_every_wait_has_a_limit_or_a_reason_why_it_has_none() -> None:
    found = {str(wait): wait for wait in find_waits_below(*(ROOT / name for name in PACKAGES))}
    unknown = [f"{wait} (line {wait.line})" for text, wait in found.items() if text not in WITHOUT_LIMIT]
    assert not unknown, "give these a limit, and a line in docs/security.md, or a reason in WITHOUT_LIMIT"
    assert sorted(WITHOUT_LIMIT.keys() - found) == [], "there is no such wait any more"


@pytest.mark.parametrize(
    ("statement", "wait"),
    [
        ("fcntl.flock(file, fcntl.LOCK_EX)", "fcntl.flock"),
        ("fcntl.lockf(file, fcntl.LOCK_EX)", "fcntl.lockf"),
        ("fcntl.fcntl(file, fcntl.F_OFD_SETLKW, lock)", "fcntl.fcntl"),
        ("os.waitpid(pid, 0)", "os.waitpid"),
        ("process = subprocess.Popen(command); process.wait()", "process.wait"),
        ("process.wait(timeout=None)", "process.wait"),
        ("process.communicate(data)", "process.communicate"),
        ("subprocess.run(command, check=True)", "subprocess.run"),
        ("thread.join()", "thread.join"),
        ("threading.Thread(target=work).start()", "threading.Thread(target=work).start"),
        ("syncing = threading.Thread(target=work); syncing.start()", "syncing.start"),
        ("queue.get()", "queue.get"),
        ("lock.acquire()", "lock.acquire"),
        ("self._sending = asyncio.Lock()\nasync def f():\n async with self._sending: pass", "with self._sending"),
        ("with ThreadPoolExecutor(1): pass", "with ThreadPoolExecutor(1)"),
        ("pool.submit(work).result()", "pool.submit(work).result"),
        ("select.select([file], [], [])", "select.select"),
        ("select.select([file], [], [], None)", "select.select"),
        ("poll = select.poll(); poll.poll()", "poll.poll"),
        ("def f(left: float | None):\n poll = select.epoll(); poll.poll(left)", "poll.poll"),
        ("def left() -> float | None: ...\npoll = select.epoll(); poll.poll(left())", "poll.poll"),
        ("there.recv(1)", "there.recv"),
        ("listening.accept()", "listening.accept"),
        ("with socket.socket() as there: there.connect(address)", "there.connect"),
        ("os.read(pipe, 1)", "os.read"),
        ("report, theirs = os.pipe(); open(report).read()", "open"),
        ("sqlite3.connect(path)", "sqlite3.connect"),
        ("async def f():\n await changed.wait()", "changed.wait"),
        ("async def f():\n async with asyncio.timeout(None):\n  await changed.wait()", "changed.wait"),
        ("async def f():\n async with asyncio.timeout(1):\n  process.wait()", "process.wait"),
        ("async def f():\n async with asyncio.timeout(1):\n  async def g():\n   await event.wait()", "event.wait"),
        ("async def f(limit: float | None):\n await asyncio.wait_for(event.wait(), limit)", "event.wait"),
        ("async def f():\n await asyncio.wait(tasks)", "asyncio.wait"),
        ("async def f():\n await done", "await done"),
        ("async def f():\n await asyncio.shield(self._running)", "await asyncio.shield(self._running)"),
        ("async def f():\n await asyncio.to_thread(work)", "asyncio.to_thread"),
        ("pwd.getpwnam(name)", "pwd.getpwnam"),
        ("async def f():\n left = None if done else 1\n await asyncio.wait_for(event.wait(), left)", "event.wait"),
    ],
)
def test_a_wait_without_a_limit_is_found(statement: str, wait: str) -> None:
    assert wait in [found.what for found in find_waits(statement, "snippet.py")]


@pytest.mark.parametrize(
    "statement",
    [
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(file, fcntl.LOCK_UN)",
        "os.waitpid(-1, os.WNOHANG)",
        "process.wait(5)",
        "process.communicate(timeout=5)",
        "subprocess.run(command, timeout=_SECONDS)",
        "thread.join(5)",
        "','.join(words)",
        "table.get(key)",
        "process.poll()",
        "select.select([file], [], [], 1)",
        "poll = select.poll(); poll.poll(1000)",
        "there.setblocking(False); there.recv(1)",
        "os.set_blocking(pipe, False); os.read(pipe, 1)",
        "sqlite3.connect(path, timeout=2)",
        "async def f():\n async with asyncio.timeout(_SECONDS):\n  await changed.wait()",
        "async def f():\n await asyncio.wait_for(changed.wait(), 5)",
        "async def f():\n await asyncio.wait(tasks, timeout=5)",
        "async def f():\n await self.status(job_id)",
    ],
)
def test_a_wait_with_a_limit_is_not_found(statement: str) -> None:
    assert find_waits(statement, "snippet.py") == []
