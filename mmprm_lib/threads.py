"""Work that waits for others, done side by side in threads; not asyncio: a notebook's own loop is running already."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def at_once(
    most: int, work: Callable[[T], R], items: Iterable[T], more: Callable[[R], Iterable[T]] = lambda result: ()
) -> Iterator[R]:
    """What `work` makes of each item, as they finish, in any order; at most `most` are in the works.

    Items are read as there is room for them; those that `more` makes of a result come before all others.
    """
    pool, items, first = ThreadPoolExecutor(most), iter(items), deque[T]()
    flying, results = set[Future[R]](), list[R]()
    try:
        while True:
            room = most - len(flying)
            taken = [first.popleft() for _ in range(min(room, len(first)))]
            flying |= {pool.submit(work, item) for item in (*taken, *islice(items, room - len(taken)))}
            yield from results  # only now, so that the server works while the caller does
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            results = [future.result() for future in done]
            first.extend(item for result in results for item in more(result))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
