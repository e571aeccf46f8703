"""Work on several items side by side, each with its share of the threads.

An eigen-solver of LAPACK gains little from a second thread; two solvers on two threads do. And
threads that share no matrix never wait for each other when other programs want the cores too.
torch is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from pelacli.system import malloc

T = TypeVar("T")


@contextmanager
def limited(number: int | None) -> Iterator[None]:
    """Let torch take so many threads in the calling thread; None leaves the number as it is."""
    import torch

    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def for_each(
    items: Iterable[T],
    work: Callable[[T], None],
    *,
    cost: Callable[[T], int] = lambda item: 0,
    allowance: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Do the work of all items, as many at a time as there are threads and memory for.

    Args:
        work: called in any thread, in no particular order.
        cost: bytes that an item's work takes while it runs.
        allowance: bytes that all running work may take together; one item may always run.
        done: called after each item, in the caller's thread.
    """
    import torch

    items = list(items)

    def run(item: T) -> None:
        work(item)
        malloc.trim()

    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if allowance is not None:
        workers = min(workers, allowance // max(1, *map(cost, items), 1))
    if workers <= 1:
        for item in items:
            run(item)
            done()
        return
    # How many threads BLAS takes is a setting of the thread that calls it.
    pool = ThreadPoolExecutor(workers, "pela", torch.set_num_threads, (threads // workers,))
    try:
        for future in as_completed([pool.submit(run, item) for item in items]):
            future.result()
            done()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
