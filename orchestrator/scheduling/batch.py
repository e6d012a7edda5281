"""Questions of one kind, answered together: one trip to the database for all who ask meanwhile.

Whoever asks while nobody is on the way sets out at once. Whoever asks later waits until that trip
is over and goes with all the others who do, so the more there are, the less each one costs. All of
it but the trip happens in the event loop's thread, so nothing is locked.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from anyio import to_thread

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_AT_ONCE = 500
"""How many go together; a statement has only so many parameters."""


class Batch(Generic[Question, Answer]):
    """Asks `answer_all`, in a thread, and gives everyone the answer in the place of the question.

    What `answer_all` raises, everyone of that trip gets.
    """

    def __init__(self, answer_all: Callable[[Sequence[Question]], Sequence[Answer]]) -> None:
        self._answer_all = answer_all
        self._asked: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._trip: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """Ask, and wait for the answer; the look at the database begins after this call."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked.append((question, answer))
        if self._trip is None:
            self._trip = asyncio.create_task(self._go_until_all_are_answered())
        return await answer

    async def _go_until_all_are_answered(self) -> None:
        try:
            while self._asked:
                together, self._asked = self._asked[:_AT_ONCE], self._asked[_AT_ONCE:]
                await self._go(together)
        finally:
            self._trip = None

    async def _go(self, together: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        questions = [question for question, _ in together]
        try:
            answers = await to_thread.run_sync(self._answer_all, questions)
        except Exception as error:  # noqa: BLE001 - it is theirs who asked
            for _, waiting in together:
                # One who was cancelled wants none.
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in zip(together, answers, strict=True):
            if not waiting.done():
                waiting.set_result(answer)
