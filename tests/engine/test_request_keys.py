"""Request keys: the ids that they lead to cannot be computed, and a repeated spawn finds the first job all the same."""

import asyncio
import json
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.logs import ME, read_log, shell
from workerd.engine.engine import Engine
from workerd.engine.errors import FormatTooNew
from workerd.engine.request_keys import RequestKeys

PUBLISHED = uuid.UUID("6f3c2a51-8d0e-5b7b-9c35-2f1f6f0c9a44")  # in the source of every version until now
FILE = "request-keys"


def id_of_an_earlier_version(key: str) -> str:
    return str(uuid.uuid5(PUBLISHED, f"{ME.id} {key}"))


async def spawn_as_an_earlier_version(state: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Spawn a job with the id that versions without a secret give it, and remove the file with the secret."""
    with monkeypatch.context() as patch:
        patch.setattr(RequestKeys, "job_id", lambda _, __, key: id_of_an_earlier_version(key))
        async with Engine(state) as engine:
            job_id = await engine.spawn(shell(f"echo once >> {state}/count", request_key=key))
            await read_log(engine, job_id)
    (state / FILE).unlink()
    return job_id


async def spawn(state: Path, key: str) -> str:
    """Spawn a job on an engine of its own, and wait for its end."""
    async with Engine(state) as engine:
        job_id = await engine.spawn(shell(f"echo once >> {state}/count", request_key=key))
        await read_log(engine, job_id)
    return job_id


async def test_the_id_of_a_key_cannot_be_computed_from_owner_and_key(tmp_path: Path) -> None:
    ids = {await spawn(tmp_path / name, "k") for name in ("one", "another")}
    assert len({*ids, id_of_an_earlier_version("k")}) == 3
    assert {uuid.UUID(job_id).version for job_id in ids} == {4}  # as a job without a key


async def test_the_secret_is_for_the_daemon_alone_and_made_once(tmp_path: Path) -> None:
    first = await spawn(tmp_path, "k")
    path = tmp_path / FILE
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(bytes.fromhex(json.loads(before)["secret"])) == 32
    assert await spawn(tmp_path, "k") == first
    assert path.read_bytes() == before
    assert (tmp_path / "count").read_text() == "once\n"


async def test_a_key_leads_to_one_job_through_every_engine_of_a_state_directory(tmp_path: Path) -> None:
    request = shell(f"echo once >> {tmp_path}/count", request_key="k")
    async with (
        Engine(tmp_path) as first,
        Engine(tmp_path, keeps=False) as second,
        Engine(tmp_path, keeps=False) as third,
    ):
        ids = await asyncio.gather(*(engine.spawn(request) for engine in (first, second, third) * 3))
        assert len(set(ids)) == 1
        await read_log(first, ids[0])
    assert (tmp_path / "count").read_text() == "once\n"


async def test_a_copy_of_a_state_directory_finds_the_jobs_by_their_keys(tmp_path: Path) -> None:
    original = tmp_path / "original"
    job_id = await spawn(original, "k")
    shutil.copytree(original, tmp_path / "copy", ignore=shutil.ignore_patterns("control"))
    assert await spawn(tmp_path / "copy", "k") == job_id
    assert (original / "count").read_text() == "once\n"


async def test_a_job_that_an_earlier_version_spawned_is_found_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await spawn_as_an_earlier_version(tmp_path, "k", monkeypatch)
    assert job_id == id_of_an_earlier_version("k")
    for _ in range(2):
        assert await spawn(tmp_path, "k") == job_id
    assert (tmp_path / "count").read_text() == "once\n"
    assert json.loads((tmp_path / FILE).read_bytes())["earlier"] == {}  # an upgrade is no loss


async def test_no_job_is_made_with_the_id_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await spawn_as_an_earlier_version(tmp_path, "k", monkeypatch)
    request = shell(f"echo once >> {tmp_path}/count", request_key="k")
    async with Engine(tmp_path) as engine:
        await engine.remove(job_id)
        ids = set(await asyncio.gather(*(engine.spawn(request) for _ in range(5))))
        assert len(ids) == 1
        assert ids != {job_id}
        await read_log(engine, ids.pop())
    assert (tmp_path / "count").read_text() == "once\n" * 2


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(data[20:21], b"0" if data[20:21] != b"0" else b"1", 1))


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lose_a_digit(path: Path) -> None:
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"secret": content["secret"][2:]}))


@pytest.mark.parametrize(
    "lose",
    [Path.unlink, flip, lose_a_digit, lambda path: path.write_bytes(b""), replace_by_a_directory],
    ids=["removed", "a bit", "a digit", "cut", "a directory"],
)
async def test_no_job_is_run_twice_when_the_secret_is_lost(
    tmp_path: Path, lose: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await spawn_as_an_earlier_version(tmp_path, "old", monkeypatch)
    ids = {"old": old, "k": await spawn(tmp_path, "k")}
    for number in range(2):  # and when it is lost again
        lose(tmp_path / FILE)
        for key, job_id in [*ids.items()]:
            assert await spawn(tmp_path, key) == job_id
        ids[f"k{number}"] = await spawn(tmp_path, f"k{number}")
    assert (tmp_path / "count").read_text() == "once\n" * 4


async def test_a_secret_of_a_newer_version_is_left_as_it_is_whatever_its_fields_are(tmp_path: Path) -> None:
    newer = json.dumps({"format": 99, "secrets": [{"of": 2027}], "check": "of another kind"})
    (tmp_path / FILE).write_text(newer)
    with pytest.raises(FormatTooNew, match=FILE):
        async with Engine(tmp_path):
            pass
    assert (tmp_path / FILE).read_text() == newer


def test_the_secret_is_not_in_what_is_shown_of_it() -> None:
    secret = bytes(range(32))
    assert secret.hex() not in repr(RequestKeys(secret, {}))
    assert repr(secret) not in repr(RequestKeys(secret, {}))
