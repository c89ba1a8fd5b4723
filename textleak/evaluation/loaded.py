"""What a worker needs, loaded by the one process that workers are copies of: it imports this module, and waits.

It computes nothing and touches no device, for neither threads nor devices outlive a fork. Ctrl-C reaches it and its
copies too, and is the parent's to heed.
"""

from __future__ import annotations

import gc
import importlib
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
for _name in ("textleak.evaluation.measure", "transformers.models.bert.modeling_bert"):
    importlib.import_module(_name)
gc.freeze()  # what is loaded stays, and its memory shared
