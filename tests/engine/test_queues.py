"""Queues that exist only while they are used."""

import asyncio

from workerd.engine.queues import Queues


async def test_a_queue_lets_few_through_at_a_time_and_in_order() -> None:
    queues, inside, entered = Queues(3), 0, list[int]()

    async def enter(number: int) -> None:
        nonlocal inside
        async with queues.turn("key"):
            entered.append(number)
            inside += 1
            assert inside <= 3
            await asyncio.sleep(0.001)
            inside -= 1

    async with asyncio.timeout(10):
        await asyncio.gather(*(enter(number) for number in range(20)))
    assert entered == [*range(20)]


async def test_queues_do_not_wait_for_each_other() -> None:
    queues = Queues(1)
    async with asyncio.timeout(10), queues.turn("one"), queues.turn("another"):
        pass


async def test_nothing_is_left_of_a_queue_that_is_empty_or_whose_waiters_were_cancelled() -> None:
    queues = Queues(1)

    async def enter() -> None:
        async with queues.turn("key"):
            pass

    async with asyncio.timeout(10):
        async with queues.turn("key"):
            waiting = [asyncio.create_task(enter()) for _ in range(10)]
            await asyncio.sleep(0)
            for each in waiting[:-1]:
                each.cancel()
        await waiting[-1]
        await asyncio.wait(waiting)
    assert not queues._queues
