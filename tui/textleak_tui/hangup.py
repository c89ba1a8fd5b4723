"""A terminal that is gone, or a pipe that nobody holds any more.

Textual reads its input in a thread that takes the end of it for nothing to read yet, and asks again at once, for ever.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable


def when_gone(handle: int, act: Callable[[], object]) -> None:
    """Call `act`, in a thread, once the other end of a terminal or a pipe is closed; costs nothing until then.

    Where the system can't tell, it is never called.

    Args:
        handle: of the near end.
        act: what is to be done then.
    """
    if hasattr(select, "poll"):  # not on Windows
        threading.Thread(target=_watch, args=(handle, act), name="hangup", daemon=True).start()


def _watch(handle: int, act: Callable[[], object]) -> None:
    poll = select.poll()
    poll.register(handle, 0)  # of nothing but its end, which is always told
    if any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        act()
