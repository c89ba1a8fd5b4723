"""`python -m textleak_tui.attack_process run|image|audit|eval FOLDER`: one attack, in a process that ends with the app.

The first line of standard input holds the run's settings as JSON, so that no private text is in the list of
processes. The app keeps the other end open: when it closes, however the app came to its end, the attack is
interrupted as by Ctrl-C, keeps its best answer so far and goes. What happens is written into the run folder; why
there is no result is the last line of standard output, as JSON; standard error has words on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textleak import allocator, owned, runs
from textleak.errors import InputError, TextleakError
from textleak.view import PlainDisplay
from textleak.view.consoles import Commentary
from textleak_tui.agreed import FAILED, INTERRUPTED
from textleak_tui.setups import layers

if TYPE_CHECKING:
    from textleak.jobs.base import Job

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
    os._exit(INTERRUPTED)


class WithheldError(Exception):
    """Something went wrong in a redacted run: what it says may quote the text."""


def attack(command: str, folder: Path, settings: Mapping[str, Any]) -> int:
    """Prepare, drive and record one attack; the exit code.

    Args:
        command: "run" for text, "image" for pictures, "audit" for an update that was found, "eval" for a grid.
        folder: its run folder, which is left alone where the settings can't be used.
        settings: by the names that configurations have.
    """
    try:
        runs.check_folder(folder)
        if command == "image":
            _on_pictures(settings, folder)
        elif command == "audit":
            _on_update(settings, folder)
        elif command == "eval":
            _on_data(settings, folder)
        else:
            _on_text(settings, folder)
    except TextleakError as error:
        _last_word(error.what, error.why, error.fix)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        _bug(error, folder)
        return FAILED
    return 0


def _on_text(settings: Mapping[str, Any], folder: Path) -> None:
    from textleak.jobs.text import prepare
    from textleak.settings import load_run_config

    job = prepare(load_run_config(*layers(settings)))
    _record(job, runs.RunFolder.create(folder, name=job.name))


def _on_pictures(settings: Mapping[str, Any], folder: Path) -> None:
    from textleak.jobs.images import prepare
    from textleak.settings import load_image_config
    from textleak.view.films import Film

    job, film = prepare(load_image_config(*layers(settings))), Film()
    result = _record(job, runs.RunFolder.create(folder, name=job.name), film)
    if not job.config.redact:
        film.write(folder, job.truth(), result["images"])


def _on_update(settings: Mapping[str, Any], folder: Path) -> None:
    from textleak.jobs.audit import prepare
    from textleak.settings.audit import load_audit_config

    job = prepare(load_audit_config(settings))
    _record(job, runs.RunFolder.create(folder, name=job.name))


def _on_data(settings: Mapping[str, Any], folder: Path) -> None:
    from textleak.evaluation.drive import begin
    from textleak.evaluation.engines import Local
    from textleak.settings import load_evaluation_config

    evaluation = begin(load_evaluation_config(*layers({**settings, "out": folder})))
    for _ in evaluation.run(Local()):
        pass


def _record(job: Job, folder: runs.RunFolder, *viewers: Any) -> dict[str, Any]:  # noqa: ANN401
    """Drive an attack into its folder; the result."""
    from textleak.jobs.base import drive

    display, redact = PlainDisplay(Commentary()), job.config.redact
    shows = [viewer.show for viewer in (display, *viewers)]
    try:
        if job.config.save_gradients:
            job.shared.save(folder.gradients_path)
        with display, runs.Recorder(folder, job.settings, redact=redact, viewers=shows) as recorder:
            try:
                result, problem = drive(job, recorder), recorder.problem()
            except InputError:
                raise
            except Exception as error:
                recorder.fail(error)
                if redact:
                    raise WithheldError(
                        f"{type(error).__name__}: its words are left out, as the run is redacted."
                    ) from None
                raise
    except InputError:
        # The attack itself says that this can't be attacked: nothing half-written is left.
        folder.discard()
        raise
    if problem is not None:
        raise problem
    return result


def _bug(error: Exception, folder: Path) -> None:
    """Keep the traceback of what should not have happened, and tell of it."""
    traceback.print_exception(error)
    path = runs.RunFolder(path=folder).traceback_path
    where = ""
    with contextlib.suppress(OSError):  # there is no folder where it had not begun
        owned.write(path, "".join(traceback.format_exception(error)).encode("utf-8", "replace"))
        where = f"The traceback is in {path}."
    first = next(iter(str(error).splitlines()), "")
    _last_word("Something went wrong inside textleak.", f"{type(error).__name__}: {first}", where)


def _last_word(what: str, why: str, fix: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps({"what": what, "why": why, "fix": fix}) + "\n")
        sys.stdout.flush()


def run(command: str, folder: Path) -> int:
    """Read the settings, watch the app, attack; the exit code.

    Args:
        command: "run", "image" or "audit".
        folder: its run folder.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None:
            signal.signal(number, signal.default_int_handler)
    allocator.keep_memory()
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_app, args=(folder,), daemon=True).start()
    return attack(command, folder, settings)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2])))
