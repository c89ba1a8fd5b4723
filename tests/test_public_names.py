"""`import textleak` gives a script all that it needs, at once."""

import subprocess
import sys

import textleak


def test_tab_completion_finds_every_public_name_and_nothing_else():
    assert set(dir(textleak)) == {*textleak.__all__, "__version__"}
    for name in textleak.__all__:
        assert getattr(textleak, name) is not None


def test_looking_around_imports_nothing_heavy():
    code = "import textleak, sys; dir(textleak); print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
