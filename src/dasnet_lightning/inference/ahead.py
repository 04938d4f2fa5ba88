"""Work on a stream of items in threads, ahead of the one who asks for the results, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    ahead: int,
    cost: Callable[[Item], int] = lambda item: 0,
    budget: int = 0,
) -> Generator["Future[Result]"]:
    """Yield the finished future of each item, in order; its error, if there is one, is inside.

    An error of `items` itself is the last future. Closing the generator cancels what has not begun.

    Args:
        function: called for each item in a thread.
        items: read in the caller's thread, not more than `ahead` items before they are asked for.
        workers: number of threads; 0 calls `function` in the caller's thread.
        ahead: limit on the items that are held.
        cost: what an item costs while it is held.
        budget: limit on the costs that are held together. One item may exceed it.
    """
    pending: deque[tuple[Future[Result], int]] = deque()
    calls = _costed(items, cost)
    following = next(calls, None)
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="ahead")
    try:
        while following is not None or pending:
            while following is not None and len(pending) < (max(1, ahead) if workers else 1):
                if pending and sum(held for _, held in pending) + following[1] > budget > 0:
                    break
                item, held, error = following
                pending.append((_failed(error) if error else _start(function, item, pool if workers else None), held))
                following = next(calls, None)
            future, _ = pending.popleft()
            future.exception()  # waits
            yield future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _costed(items: Iterable[Item], cost: Callable[[Item], int]) -> Iterator[tuple[Item, int, Exception | None]]:
    """Yield each item with its cost; an error of `items` is the last one."""
    try:
        for item in items:
            yield item, cost(item), None
    except Exception as error:
        yield error, 0, error  # type: ignore[misc]  # the item is not read


def _start(function: Callable[[Item], Result], item: Item, pool: ThreadPoolExecutor | None) -> "Future[Result]":
    if pool is not None:
        return pool.submit(function, item)
    future: Future[Result] = Future()
    try:
        future.set_result(function(item))
    except Exception as error:
        future.set_exception(error)
    return future


def _failed(error: Exception) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
