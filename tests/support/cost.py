"""What something costs, in units of this machine at this moment: no test knows a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def reference() -> None:
    """Do what takes some ten milliseconds of a processor of 2020."""
    for number in range(60_000):
        str({"number": number, "text": "word"}["number"])


def cpu(run: Callable[[], Any]) -> float:
    """Return the CPU time that a run takes in this process, all of its threads together."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def effort(run: Callable[[], Any], repeat: int = 1) -> float:
    """Return how many times the work of the reference loop a run is: the least of several runs."""
    pairs = [(cpu(run), cpu(reference)) for _ in range(repeat)]
    return min(own for own, _ in pairs) / min(other for _, other in pairs)


class Beats:
    """Counts twentieths of seconds, as a thread of this process beside the tested ones has them."""

    PER_SECOND = 20

    def __init__(self) -> None:
        self.count = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat)

    def _beat(self) -> None:
        while not self._done.wait(1 / self.PER_SECOND):
            self.count += 1

    @property
    def seconds(self) -> float:
        return self.count / self.PER_SECOND


@contextmanager
def beats() -> Iterator[Beats]:
    beating = Beats()
    beating._thread.start()
    try:
        yield beating
    finally:
        beating._done.set()
        beating._thread.join()
