"""Batches made ahead, on a thread of their own, while the device trains."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from stackbert.batches import Batch, BatchPlan

AHEAD = {"cpu": 0, "cuda": 3}
"""Batches that a run has ready. On a CPU the thread would only take the cores from the step that it
runs beside."""


def batches(
    plan: BatchPlan, first: int, end: int, *, ahead: int, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """The batches of steps first … end - 1, in order.

    Args:
        plan: what each step sees.
        first: step to begin with.
        end: step after the last.
        ahead: batches to have ready; 0 makes each when it is asked for, without a thread.
        rank: the process whose rows they are.
        ranks: processes of the run.
    """
    if ahead == 0:
        for step in range(first, end):
            yield plan.batch(step, rank, ranks)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ready: deque[Future[Batch]] = deque()
        try:
            for step in range(first, end):
                while len(ready) <= ahead and step + len(ready) < end:
                    ready.append(thread.submit(plan.batch, step + len(ready), rank, ranks))
                yield ready.popleft().result()
        finally:
            for future in ready:
                future.cancel()
