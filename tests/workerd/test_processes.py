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
