"""What transformers reads of its own files is the same whether it is read or remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textleak.models.loading import transformers_files

FILES = {
    "__init__.py": "",
    "toy/modeling_toy.py": '__all__ = ["ToyModel", "ToyHead"]\n',
    "toy/tokenization_toy.py": '__all__ = ["ToyTokenizer"]\n',
    "other/configuration_other.py": '__all__ = ["OtherConfig"]\n',
}
Read = Callable[[str | Path], dict[Any, Any]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models, and a cache of its own."""
    monkeypatch.setattr(transformers_files, "cache_path", lambda: tmp_path / "cache" / "transformers.json")
    folder = tmp_path / "models"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "reader.py").write_text("")
    return folder


class Process:
    """What one process has: transformers' own function, called only where nothing is remembered."""

    def __init__(self, models: Path) -> None:
        from transformers.utils import import_utils

        self.reads = 0
        self.own = import_utils.create_import_structure_from_path
        reader = models.parent / "reader.py"
        self.structure: Read = transformers_files.remembering(self._read, models, reader=reader)

    def _read(self, path: str | Path) -> dict[Any, Any]:
        self.reads += 1
        return self.own(path)


def test_what_is_remembered_is_what_is_read_and_no_process_shares_it(models):
    first, second = Process(models), Process(models)
    told = first.structure(models)
    assert told == first.own(models) != {}
    assert told["toy"][frozenset({"torch"})]["modeling_toy"] == {"ToyModel", "ToyHead"}
    told.clear()  # whoever is told may change it
    assert first.structure(str(models / "__init__.py")) == first.own(models)
    assert first.reads == 1
    assert second.structure(models) == first.own(models)
    assert second.reads == 0
    assert second.structure(models / "toy") == first.own(models / "toy")
    assert second.reads == 1


@pytest.mark.parametrize("what", ["longer", "as long", "new", "gone", "reader"])
def test_files_that_changed_are_read_again(models, what):
    Process(models).structure(models)
    file = models / "toy" / "modeling_toy.py"
    if what == "longer":
        file.write_text('__all__ = ["ToyModel", "ToyHead", "ToyTail"]\n')
    elif what == "as long":
        before = file.stat()
        file.write_text('__all__ = ["ToyModel", "ToyTail"]\n')
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif what == "new":
        (models / "toy" / "processing_toy.py").write_text('__all__ = ["ToyProcessor"]\n')
    elif what == "gone":
        file.unlink()
    else:
        (models.parent / "reader.py").write_text("# reads otherwise\n")
    process = Process(models)
    assert process.structure(models) == process.own(models)
    assert process.reads == 1


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_what_was_kept_and_is_damaged_is_read_again(models, damage):
    Process(models).structure(models)
    path = transformers_files.cache_path()
    path.write_bytes(path.read_bytes().replace(b"ToyHead", b"ToyHand") if damage is None else damage)
    for reads in (1, 0):
        process = Process(models)
        assert process.structure(models) == process.own(models)
        assert process.reads == reads


def test_a_cache_that_cannot_be_written_is_done_without(models):
    transformers_files.cache_path().parent.write_text("a file where the folder would be")
    for _ in range(2):
        process = Process(models)
        assert process.structure(models) == process.own(models)
        assert process.reads == 1


@pytest.mark.parametrize("names", [("ToyModel",), {"ToyModel": 1}, 7], ids=str)
def test_an_answer_of_another_kind_is_passed_on_and_not_kept(models, names):
    answer = {"toy": {frozenset({"torch"}): {"modeling_toy": names}}}
    reader = models.parent / "reader.py"
    told = transformers_files.remembering(lambda _: answer, models, reader=reader)
    assert told(models) is answer
    assert not transformers_files.cache_path().exists()


LOADS = """
import builtins, json, sys
opened, own = [], builtins.open
builtins.open = lambda name, *rest, **options: (opened.append(str(name)), own(name, *rest, **options))[1]
from textleak.models.loading.transformers_files import import_transformers
import_transformers()
builtins.open = own
import transformers
from transformers.utils import import_utils
assert import_utils.create_import_structure_from_path.__module__ == import_utils.__name__
root = transformers.models.__file__
read = import_utils.define_import_structure.__wrapped__
assert import_utils.define_import_structure(root) == read(root)
assert transformers.BertConfig().model_type == "bert"
print(json.dumps(sum("/models/" in name for name in opened)))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="The cache folder is moved by Linux's variable."
)
def test_a_process_opens_no_models_files_that_another_has_read(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    opened = [
        json.loads(
            subprocess.run([sys.executable, "-c", LOADS], env=environment, check=True, stdout=-1).stdout
        )
        for _ in range(2)
    ]
    assert opened[0] > 1000
    assert opened[1] < 50
