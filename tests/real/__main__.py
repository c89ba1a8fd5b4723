"""What an audit says of real loops: a row for each thing that they leave, `python -m tests.real [LOOP ...]`.

Each loop trains in a process of its own, and is audited in another from its files. Loops whose packages aren't
installed are named and left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.real.loops import LOOPS, Left, audited, trained


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("loops", nargs="*", metavar="LOOP", help=f"of {', '.join(LOOPS)}; all by default")
    parser.add_argument("--time-limit", default="60s", help="of each audit")
    parser.add_argument("--keep", type=Path, default=None, help="a folder to keep what the loops leave in")
    options = parser.parse_args()
    _say("| loop | client as recorded | verdict | match | proof | proved tokens | seconds | CPU-seconds |")
    _say("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.loops or LOOPS:
            missing = LOOPS[name].missing()
            if missing:
                _say(f"| {name} | left out: {', '.join(missing)} not installed | | | | | | |")
                continue
            for left in trained(name, (options.keep or Path(temporary)) / name):
                _say(row(left, audited(left, time_limit=options.time_limit)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def row(left: Left, said: dict[str, Any]) -> str:
    """A row of the table."""
    match = said.get("token_match_rate")
    cells = (
        left.name,
        f"`{left.client}`{'*' if left.notes else ''}",
        said["verdict"],
        "" if match is None else f"{match:.2f}",
        said.get("proof") or "none",
        said.get("proved_tokens", 0),
        f"{said['clock']:.0f}",
        f"{said['cpu']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
