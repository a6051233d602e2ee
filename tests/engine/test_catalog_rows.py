"""What the catalogue keeps of each job: in which order, what they take together, and what is kept of damaged ones."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from tests.engine.catalogs import BEGAN_NS, Filling, draw_id, enter_many
from workerd.engine.catalog import Catalog, EndedJob, Reach


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """A catalogue, complete and empty."""
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        catalog.mark_complete(catalog.generation)
        yield catalog


def names(catalog: Catalog, owner: str | None) -> list[str]:
    return [job_id for _, job_id in catalog.newest(owner, before=None, name="", only_unended=False)]


def test_a_damaged_job_is_entered_as_ended_when_its_folder_last_changed(catalog: Catalog, seed: int) -> None:
    job_id, owner = draw_id(random.Random(seed)), draw_id(random.Random(seed + 1))
    catalog.mark_damaged(job_id, owner, BEGAN_NS, 4096)
    assert [*catalog.newest(owner, before=None, name="", only_unended=False)] == [(BEGAN_NS, job_id)]
    assert [*catalog.ended()] == [EndedJob(job_id, BEGAN_NS, 4096)]
    assert catalog.unended() == []
    assert catalog.total_bytes() == 4096


def test_a_damaged_job_keeps_what_an_earlier_row_says_of_it(catalog: Catalog, seed: int) -> None:
    """Its owner finds it in the list by these."""
    running, ended = Filling(seed).specs[:2]
    catalog.add(running)
    catalog.mark_ended(ended, ended.created_ns, 1)
    for spec in (running, ended):
        catalog.mark_damaged(spec.id, "", BEGAN_NS * 2, 8192)
        [position] = catalog.newest(spec.owner.id, before=(spec.created_ns, "g"), name=spec.name, only_unended=False)
        assert position == (spec.created_ns, spec.id)
        assert catalog.owner(spec.id) == spec.owner.id
    assert {job.ended_ns for job in catalog.ended()} == {BEGAN_NS * 2}
    assert catalog.total_bytes() == 2 * 8192


def test_the_owner_of_a_damaged_job_is_entered_when_it_becomes_known(catalog: Catalog, seed: int) -> None:
    spec = Filling(seed).specs[0]
    catalog.mark_damaged(spec.id, "", BEGAN_NS, 0)
    assert catalog.owner(spec.id) == ""
    assert names(catalog, None) == [spec.id]
    catalog.mark_damaged(spec.id, spec.owner.id, BEGAN_NS, 0)
    assert catalog.owner(spec.id) == spec.owner.id
    catalog.mark_damaged(spec.id, "", BEGAN_NS, 0)
    assert catalog.owner(spec.id) == spec.owner.id


@pytest.mark.parametrize("changed_ns", [-(2**70), 0, 2**63, 2**70])
def test_a_damaged_job_is_listed_and_ended_whatever_time_its_folder_has(
    catalog: Catalog, seed: int, changed_ns: int
) -> None:
    """A file system may have any (stat(2)); SQLite takes 64 bits, and zero stands for a job that has not ended."""
    job_id = draw_id(random.Random(seed))
    catalog.mark_damaged(job_id, "", changed_ns, 0)
    assert names(catalog, None) == [job_id]
    assert [job.id for job in catalog.ended()] == [job_id]


def test_a_job_that_its_key_makes_again_is_not_ended_whatever_the_row_says(catalog: Catalog, seed: int) -> None:
    spec = Filling(seed).specs[0]
    catalog.mark_damaged(spec.id, "", BEGAN_NS, 4096)
    again = msgspec.structs.replace(spec, created_ns=spec.created_ns + 5)
    assert catalog.add(again)
    assert catalog.unended() == [spec.id]
    assert [*catalog.newest(spec.owner.id, before=None, name="", only_unended=True)] == [(again.created_ns, spec.id)]
    assert catalog.total_bytes() == 0


def test_the_total_is_what_all_rows_take(catalog: Catalog, seed: int) -> None:
    source = random.Random(seed)
    specs = Filling(seed, 30).specs
    sizes: dict[str, int] = {}
    for _ in range(1000):
        spec, size = source.choice(specs), source.randrange(5) << 12
        match source.randrange(6):
            case 0:
                catalog.add(spec)
                sizes[spec.id] = 0
            case 1:
                catalog.add_found(spec)
                sizes.setdefault(spec.id, 0)
            case 2:
                catalog.mark_ended(spec, BEGAN_NS, size)
                sizes[spec.id] = size
            case 3:
                catalog.mark_damaged(spec.id, "", BEGAN_NS, size)
                sizes[spec.id] = size
            case 4:
                running = dict.fromkeys(catalog.unended(), size)
                catalog.note_sizes({each.id: size for each in specs})
                sizes |= running
            case _:
                catalog.remove(spec.id)
                sizes.pop(spec.id, None)
        assert catalog.total_bytes() == sum(sizes.values())
    assert catalog.find_damage() is None


def test_jobs_that_have_ended_come_in_the_order_of_their_ends_from_any_position(
    catalog: Catalog, seed: int, tmp_path: Path
) -> None:
    source = random.Random(seed)
    rows = [(draw_id(source), "owner", BEGAN_NS, BEGAN_NS + source.randrange(50), 1) for _ in range(700)]
    enter_many(tmp_path / "catalog.sqlite", rows)
    catalog.add(Filling(seed + 1).specs[0])
    expected = sorted((row[3], row[0]) for row in rows)
    assert [(job.ended_ns, job.id) for job in catalog.ended()] == expected
    for at in (0, 15, 16, 400, 699):
        assert [(job.ended_ns, job.id) for job in catalog.ended(expected[at])] == expected[at + 1 :]


def test_jobs_may_be_removed_while_the_ended_ones_are_walked(catalog: Catalog, seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    rows = [(draw_id(source), "owner", BEGAN_NS, BEGAN_NS + number, 1) for number in range(700)]
    enter_many(tmp_path / "catalog.sqlite", rows)
    walked = []
    for job in catalog.ended():
        walked.append(job.id)
        catalog.remove(job.id)
    assert walked == [row[0] for row in rows]
    assert catalog.total_bytes() == 0


@pytest.mark.slow
def test_two_hundred_thousand_jobs_are_checked_in_half_a_second(catalog: Catalog, seed: int, tmp_path: Path) -> None:
    """Of this process's CPU, with a margin for a machine that does something else at the same time."""
    source = random.Random(seed)
    owners = [draw_id(source) for _ in range(20)]
    count = 200_000
    rows = ((draw_id(source), source.choice(owners), BEGAN_NS + n, BEGAN_NS + 2 * n, 4096) for n in range(count))
    enter_many(tmp_path / "catalog.sqlite", rows)
    began = time.process_time()
    assert catalog.find_damage() is None
    assert time.process_time() - began < 1.0
    assert catalog.total_bytes() == count * 4096


def test_a_reach_has_the_owners_jobs_and_the_shared_ones_and_the_named_once_each(catalog: Catalog, seed: int) -> None:
    filling = Filling(seed)
    filling.fill(catalog)
    mine, theirs, name = filling.owners[0], filling.owners[1], "bob"
    shared = [spec for number, spec in enumerate(filling.specs) if number % 3 == 0]
    named = filling.specs[1]
    for reach, chosen in (
        (Reach(mine), []),
        (Reach(mine, frozenset({name})), shared),
        (Reach(mine, frozenset({theirs})), shared[1::2]),
        (Reach(mine, frozenset({theirs, name}), frozenset({named.id})), [*shared, named]),
    ):
        wanted = {(spec.created_ns, spec.id) for spec in filling.specs if spec.owner.id == mine or spec in chosen}
        found = [*catalog.newest(reach, before=None, name="", only_unended=False)]
        assert found == sorted(wanted, reverse=True)
        assert [*catalog.newest(reach, before=found[3], name="", only_unended=False)] == found[4:]
        of_label = {spec.id for spec in filling.specs if spec.name == "label1"}
        labelled = [place for place in found if place[1] in of_label]
        assert [*catalog.newest(reach, before=None, name="label1", only_unended=False)] == labelled
        unended = [place for place in found if place[1] in {*catalog.unended()}]
        assert [*catalog.newest(reach, before=None, name="", only_unended=True)] == unended
    removed = next(spec for spec in shared if spec.owner.id != mine)
    catalog.remove(removed.id)
    catalog.add(removed)  # made again by its key, and shared with nobody
    assert removed.id not in {job_id for _, job_id in catalog.newest(reach, before=None, name="", only_unended=False)}


@pytest.mark.parametrize("only_unended", [False, True])
@pytest.mark.parametrize("name", ["", "label1"])
def test_no_part_of_a_reach_is_found_by_looking_through_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, only_unended: bool
) -> None:
    plans: list[str] = []
    with Catalog(tmp_path / "catalog.sqlite") as catalog:
        catalog.mark_complete(catalog.generation)
        read = catalog._read

        def explain(query: str, values: Sequence[str | int], *checks: Callable[[object], bool]) -> list[object]:
            plans.extend(row[3] for row in catalog._database.execute(f"EXPLAIN QUERY PLAN {query}", values))
            return read(query, values, *checks)

        monkeypatch.setattr(catalog, "_read", explain)
        reach = Reach("an owner", frozenset({"an owner", "a name"}), frozenset({"an id"}))
        assert [*catalog.newest(reach, before=None, name=name, only_unended=only_unended)] == []
    assert len(plans) >= 4
    assert not [plan for plan in plans if plan.startswith("SCAN") and "json_each" not in plan], plans
