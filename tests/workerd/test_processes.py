"""Keeping API processes running when one cannot be started."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.freezing import Freezer
from workerd import processes as module
from workerd.api_process import Orders
from workerd.processes import ApiProcesses
from workerd.settings import Settings

SERVE = "import os, signal, sys; os.write(int(sys.argv[1]), b'serving'); os.close(int(sys.argv[1])); signal.pause()"


async def test_an_api_process_for_which_the_machine_has_no_room_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    shortages = [OSError(errno.EAGAIN, "no process"), OSError(errno.ENOMEM, "no memory")]

    def start_later(*arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        if shortages:
            raise shortages.pop()
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start_later)
    monkeypatch.setattr(Orders, "command", lambda self: [sys.executable, "-c", SERVE, str(self.report)])
    with open(os.devnull) as hold:
        processes = ApiProcesses(Settings("127.0.0.1", 0, tmp_path, tmp_path, tmp_path), hold.fileno())
        running = asyncio.create_task(processes.run())
        await asyncio.wait(
            [running, waiting := asyncio.create_task(processes.wait_serving())],
            timeout=30,
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert waiting.done()
        await processes.end(signal.SIGTERM, 10)
        await running
    assert shortages == []


async def test_an_api_process_that_no_signal_ends_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freezer: Freezer
) -> None:
    monkeypatch.setattr(module, "_KILLED_SECONDS", 0.3)
    monkeypatch.setattr(module, "_END_SECONDS", 0.3)
    monkeypatch.setattr(Orders, "command", lambda self: [sys.executable, "-c", SERVE, str(self.report)])
    with open(os.devnull) as hold:
        settings = Settings("127.0.0.1", 0, tmp_path, tmp_path, tmp_path, processes=2)
        processes = ApiProcesses(settings, hold.fileno())
        running = asyncio.create_task(processes.run())
        async with asyncio.timeout(60):
            await processes.wait_serving()
            children = [*processes._running.values()]
            freezer.freeze(children[0].pid)
            await processes.end(signal.SIGTERM, 0.3)
            await running
    freezer.thaw()
    assert [child.wait(30) for child in children] == [-signal.SIGKILL, -signal.SIGTERM]
