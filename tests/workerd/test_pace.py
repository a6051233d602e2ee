"""How the loop's time is divided among users."""

import asyncio
import contextlib
import itertools
import time

from workerd.pace import _MOST_STEPS, Pace


async def test_few_steps_are_done_at_once() -> None:
    """A coroutine that leaves the loop a turn cannot be driven by hand."""
    step = Pace().step()
    with contextlib.suppress(StopIteration):
        step.send(None)
        raise AssertionError("a single step waited")


async def test_very_many_steps_of_a_user_leave_others_a_turn_between_any_few() -> None:
    pace, done = Pace(), list[int]()

    async def call(number: int) -> None:
        await pace.step()
        done.append(number)

    calls = [asyncio.create_task(call(number)) for number in range(100)]
    rounds = list[int]()
    async with asyncio.timeout(10):
        while len(done) < 100:
            await asyncio.sleep(0)  # as somebody else's call
            rounds.append(len(done))
    assert done == [*range(100)]
    assert max(after - before for before, after in itertools.pairwise(rounds)) <= _MOST_STEPS
    await asyncio.gather(*calls)


async def test_a_round_has_fewer_steps_when_they_take_long() -> None:
    pace, done = Pace(), 0

    async def call() -> None:
        nonlocal done
        await pace.step()
        done += 1
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    calls = [asyncio.create_task(call()) for _ in range(20)]
    rounds = list[int]()
    async with asyncio.timeout(10):
        while done < 20:
            await asyncio.sleep(0)
            rounds.append(done)
    assert max(after - before for before, after in itertools.pairwise(rounds[3:])) == 1
    await asyncio.gather(*calls)


async def test_a_loop_of_steps_leaves_others_a_turn() -> None:
    pace, steps = Pace(), 0

    async def read() -> None:
        nonlocal steps
        while True:
            await pace.step()
            steps += 1

    reading = asyncio.create_task(read())
    for _ in range(10):
        await asyncio.sleep(0)
    reading.cancel()
    assert 0 < steps <= 11 * _MOST_STEPS


async def test_a_call_that_is_cancelled_while_it_waits_keeps_nobody_from_going_on() -> None:
    pace = Pace()
    calls = [asyncio.create_task(pace.step()) for _ in range(20)]
    await asyncio.sleep(0)
    for call in calls[1:-1]:
        call.cancel()
    async with asyncio.timeout(10):
        await calls[-1]
        await asyncio.wait(calls)
        for _ in range(20):
            await pace.step()


async def test_users_do_not_wait_for_each_other() -> None:
    greedy, other = Pace(), Pace()
    calls = [asyncio.create_task(greedy.step()) for _ in range(1000)]
    await asyncio.sleep(0)
    for _ in range(5):
        await other.step()
    assert sum(call.done() for call in calls) < 20
    await asyncio.gather(*calls)
