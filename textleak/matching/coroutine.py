"""A function that stops in its midst until somebody answers it: a thread that runs only while it is resumed."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")

# Seconds after which a wait is begun again (our choice): a signal that came just before it doesn't end it.
_LOOK = 0.5


@dataclass
class Spent:
    """Seconds.

    Attributes:
        clock: on the clock.
        processor: of this process on its processors.
    """

    clock: float = 0.0
    processor: float = 0.0


@contextmanager
def shared_by(those: Iterable[Spent]) -> Iterator[None]:
    """What passes within is theirs, in equal parts."""
    each = list(those)
    clock, processor = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        for spent in each:
            spent.clock += clock / len(each)
            spent.processor += processor / len(each)


class _EndedError(BaseException):
    """Nobody will answer any more."""


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an error in a thread at its next step of Python, as Ctrl-C does in the main one."""
    raise_at = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_at(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


class Coroutine(Generic[Question, Answer, Result]):
    """A function in a thread of its own that runs only within `resume`.

    Args:
        function: gets `ask`, which gives the answer to a question.

    Attributes:
        ended: whether the function has come to its end.
        question: what it waits to be answered; None before it begins and after its end.
        spent: while it was resumed, and whatever its driver adds.
    """

    def __init__(self, function: Callable[[Callable[[Question], Answer]], Result]) -> None:
        self.ended = False
        self.question: Question | None = None
        self.spent = Spent()
        self._function = function
        self._answers: list[Answer] = []
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._over = False
        self._resumed: tuple[float, float] | None = None  # when, on the clock and by the processor
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    def resume(self, *answer: Answer) -> None:
        """Let it go on, with the answer to its question, until it asks or ends.

        Raises:
            BaseException: what the function raised.
        """
        self._answers = list(answer)
        self._resumed = time.perf_counter(), time.process_time()
        self._go.release()
        while not self._back.acquire(timeout=_LOOK):
            pass  # a Ctrl-C of just before is seen now
        self.spent, self._resumed = self.so_far, None
        if self._error is not None:
            raise self._error

    @property
    def so_far(self) -> Spent:
        """`spent`, and what has passed since it was resumed."""
        if self._resumed is None:
            return self.spent
        clock, processor = time.perf_counter() - self._resumed[0], time.process_time() - self._resumed[1]
        return Spent(clock=self.spent.clock + clock, processor=self.spent.processor + processor)

    @property
    def result(self) -> Result:
        """What the function gave; there when it has ended."""
        return self._results[0]

    def end(self) -> None:
        """Stop it: where it waits, or where it is, after a `resume` that a Ctrl-C has left."""
        self._answers, self._over = [], True
        if self._resumed is not None and self._thread.is_alive():
            _raise_in(self._thread, _EndedError)
        self._go.release()
        self._thread.join()
        self.ended, self.question = True, None

    def _body(self) -> None:
        self._go.acquire()
        try:
            if not self._over:
                self._results = [self._function(self._ask)]
        except _EndedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.ended, self.question = True, None
            self._back.release()

    def _ask(self, question: Question) -> Answer:
        if self._over:
            raise _EndedError
        self.question = question
        self._back.release()
        self._go.acquire()
        answers = self._answers  # `end` puts others in their place
        if not answers:
            raise _EndedError
        return answers.pop()
