"""`python -m textleak_tui.attack_process run ...`: a `textleak` command that ends when the app does.

The app keeps the other end of this process's standard input. When it closes, however the app came to its end,
the command is interrupted as by Ctrl-C: it keeps its best answer so far and goes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

from textleak import runs

# Our choice: well over the time that an attack takes to heed an interrupt.
SECONDS_TO_HEAR = 3.0
# Our choice: forming the answer's own gradient takes a few seconds on the largest models here.
SECONDS_TO_FINISH = 20.0


def _end_with_the_app(folder: Path) -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(SECONDS_TO_HEAR)
    # An interrupt that falls into torch's own calls can be lost; what the run is told through its folder is not.
    with contextlib.suppress(OSError):
        runs.send(folder, "stop")
    # An exact answer that is being written is done in well under this time.
    threading.Event().wait(SECONDS_TO_FINISH)
    os._exit(130)


if __name__ == "__main__":
    from textleak.cli import main

    out = Path(sys.argv[sys.argv.index("--out") + 1])
    threading.Thread(target=_end_with_the_app, args=(out,), daemon=True).start()
    sys.argv[0] = "textleak"
    main()
