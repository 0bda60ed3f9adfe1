"""How many calls one server is asked at once: fewer where it says that it has too many, slowly more again. Knows nothing else."""

from __future__ import annotations

import asyncio

SLOWLY = 2  # so often all calls that a server has at once must be answered before it gets one more


class Room:
    """Places for calls. All are there at first; each `lower` halves them, answers bring them back.

    Up to what was known to go well each answer brings one back, from there on they come slowly.

    Args:
        most: how many there are at first.
    """

    def __init__(self, most: int) -> None:
        self.most = self.limit = most
        self._well = most  # so many are known to go well
        self._credit = 0
        self._answered = True  # since they were last halved
        self._places = most  # free and held; more than the limit until those who hold one leave it
        self._free: asyncio.Queue[None] = asyncio.Queue()
        for _ in range(most):
            self._free.put_nowait(None)

    @property
    def full(self) -> bool:
        """Whether whoever holds a place must leave it without a call."""
        return self._places > self.limit

    async def enter(self) -> None:
        """Wait for a place."""
        await self._free.get()

    def leave(self) -> None:
        """Give a place back."""
        if self.full:
            self._places -= 1
        else:
            self._free.put_nowait(None)

    def lower(self) -> None:
        """The server has too many calls."""
        self.limit = max(1, self.limit // 2)
        if self._answered:
            self._well = self.limit
        self._credit, self._answered = 0, False
        while self.full and not self._free.empty():
            self._free.get_nowait()
            self._places -= 1

    def answered(self) -> None:
        """The server has answered a call."""
        self._answered = True
        if self.limit == self.most:
            return
        self._credit += 1
        if self.limit < self._well or self._credit >= SLOWLY * self.limit:
            self._credit = 0
            self.limit += 1
            if self._places < self.limit:
                self._places += 1
                self._free.put_nowait(None)
