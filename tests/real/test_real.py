"""What real frameworks' real loops leave is audited from the files alone, in a process that never saw the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.loops import LOOPS, audited, trained

pytestmark = [pytest.mark.slow, pytest.mark.pretrained]

VERDICTS = {"LEAKS", "PARTLY", "NOT FOUND", "INCONCLUSIVE"}
LEFT = {
    "trainer": {"trainer step-1", "trainer round"},
    "peft-gradient": {"peft-gradient step-4"},
    "opacus": {"opacus step-1"},
    "flower": {"flower round-1-client-0", "flower round-1-client-1"},
    "ddp": {"ddp step-1"},
    "checkpoints": {"checkpoints"},
}
RECOVERED = {
    "ddp step-1"
}  # what an attack of today reads whole; the others are measured by python -m tests.real

LONG = {"peft", "trainer-bf16"}  # minutes of audits like the others', which `python -m tests.real` measures


@pytest.mark.parametrize("name", [name for name in LOOPS if name not in LONG])
def test_an_audit_of_a_real_loop_ends_in_a_verdict(name: str, tmp_path: Path):
    missing = LOOPS[name].missing()
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    found = {left.name: left for left in trained(name, tmp_path)}
    assert found.keys() == LEFT[name]
    for left in found.values():
        said = audited(left, time_limit="30s" if left.name in RECOVERED else "15s")
        assert said["verdict"] in VERDICTS
        assert said["told"]
        if said["proof"] == "gradient":
            assert said["token_match_rate"] == 1.0
        if left.name in RECOVERED:
            assert said["verdict"] == "LEAKS"
            assert said["token_match_rate"] == 1.0
