"""`python -m textleak_tui.attack_process run ...`: a `textleak` command that ends when the app does.

The app keeps the other end of this process's standard input. When it closes, however the app came to its end,
the command is interrupted as by Ctrl-C: it keeps its best answer so far and goes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

# Our choice: forming the answer's own gradient takes a few seconds on the largest models here.
SECONDS_TO_FINISH = 20.0


def _end_with_the_app() -> None:
    while os.read(0, 1024):
        pass
    # An exact answer that is being written is done in well under this time.
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(SECONDS_TO_FINISH)
    os._exit(130)


if __name__ == "__main__":
    from textleak.cli import main

    threading.Thread(target=_end_with_the_app, daemon=True).start()
    sys.argv[0] = "textleak"
    main()
