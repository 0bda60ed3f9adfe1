"""How many calls a server has at once."""

from __future__ import annotations

import asyncio

from tokendeep.engines.server.room import SLOWLY, Room


def answered(room: Room, times: int) -> int:
    for _ in range(times):
        room.answered()
    return room.limit


def test_it_is_halved_down_to_one_and_comes_back_slowly() -> None:
    room = Room(8)
    assert answered(room, 100) == 8
    room.lower()
    assert (room.limit, answered(room, SLOWLY * 4 - 1), answered(room, 1)) == (4, 4, 5)
    assert answered(room, SLOWLY * (5 + 6 + 7)) == answered(room, 100) == 8
    for left in (4, 2, 1, 1):
        room.lower()
        assert room.limit == left


def test_what_went_well_comes_back_at_once() -> None:
    """A server that was gone for some time had not too many calls each time."""
    room = Room(32)
    for _ in range(9):
        room.lower()
    assert [room.limit, answered(room, 15)] == [1, 16]
    assert answered(room, 31) == 16


def test_places_are_as_many_as_the_limit() -> None:
    async def work() -> None:
        room, held, most = Room(4), 0, 0

        async def come(times: int) -> None:
            nonlocal held, most
            for _ in range(times):
                await room.enter()
                if not room.full:
                    held += 1
                    most = max(most, held)
                    await asyncio.sleep(0)
                    held -= 1
                room.leave()

        async def all_come() -> int:
            nonlocal most
            most = 0
            await asyncio.gather(*(come(50) for _ in range(8)))
            return most

        assert await all_come() == 4
        for _ in range(4):
            await room.enter()
        room.lower()  # while all are held
        for _ in range(4):
            room.leave()
        assert await all_come() == 2
        room.lower()  # while none is
        assert await all_come() == 1
        answered(room, 100)
        assert await all_come() == 4

    asyncio.run(asyncio.wait_for(work(), 30))
