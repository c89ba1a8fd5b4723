"""Try changed gradient files, run folders and command lines: `python -m tests.hostile [--seed N] [--only NAME]`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.hostile.suites import SUITES
from tests.hostile.trial import peak_mib


def main() -> int:
    """Try all suites; 1 where one has found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SUITES, action="append")
    parser.add_argument("--count", type=int, help="cases of each suite")
    options = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory(prefix="textleak-hostile-") as name:
        os.environ["TEXTLEAK_RUNS"] = str(Path(name) / "runs")
        for suite in options.only or SUITES:
            attempt, count = SUITES[suite]
            place = Path(name) / suite.replace(" ", "-")
            place.mkdir()
            began = time.monotonic()
            tally = attempt(place, options.count or count, options.seed)
            found += sum(tally.kinds.values())
            spent = time.monotonic() - began
            sys.stdout.write(f"{tally.words(suite)}\n  {spent:.0f} s, at most {peak_mib():,.0f} MiB\n")
            sys.stdout.flush()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
