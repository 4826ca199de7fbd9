"""Stopping a command by SIGINT (Ctrl-C) or SIGTERM: it ends with 128 plus the number of the signal, never with 0.

A command stops at once, by an exception, except while a run (`sodp3d.core.run`) notes the signal to stop by itself.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):  # so that nothing takes it for a failure and goes on, the rest of a sweep included
    """A signal has asked this process to stop, and work has ended before its end, unless it was `finished` by then."""

    def __init__(self, number: int, finished: bool = False) -> None:
        self.number, self.finished = number, finished
        super().__init__(signal.Signals(number).name)


def stop_at_once(number: int) -> None:
    """Raises Stopped."""
    raise Stopped(number)


@contextmanager
def on_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act(number)` for each signal inside the block, but for those that whoever began this process ignores.

    Other threads than the main one get none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = [(number, signal.signal(number, lambda number, _: act(number))) for number in heeded]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
