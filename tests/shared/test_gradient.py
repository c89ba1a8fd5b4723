"""Shared gradients on disk: read back as they were, and refused when something is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ToyModel
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.foreign import MIB
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation
from textleak.shared.public import PublicClient, PublicDefense, PublicModel

PUBLIC = PublicModel(
    name="toy",
    task="classification",
    weights="random",
    weights_seed=3,
    num_labels=2,
    dtype="float32",
    fingerprint="0123",
)


def small(**values: torch.Tensor) -> SharedGradient:
    gradients = {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3)}
    return SharedGradient(gradients={**gradients, **values}, model=PUBLIC, share="all")


def parameters(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_is_saved_is_read_back(dtype: str, toy_model: ToyModel, tmp_path: Path) -> None:
    model = toy_model("bert", task="classification", dtype=dtype)
    shared, _ = share(
        model,
        ["the cat sat", "a dog"],
        share="no-embeddings",
        know="lengths,labels",
        defenses=[DEFENSES.build("gaussian", {"sigma": 0.01})],
    )
    shared.save(tmp_path / "gradient.safetensors")
    read = SharedGradient.load(tmp_path / "gradient.safetensors")
    assert read.gradients.keys() == shared.gradients.keys()
    for name, gradient in shared.gradients.items():
        assert read.gradients[name].dtype == gradient.dtype == getattr(torch, dtype)
        assert torch.equal(read.gradients[name], gradient)
    assert (read.model, read.share, read.known, read.defenses) == (
        shared.model,
        shared.share,
        shared.known,
        shared.defenses,
    )
    assert read.noise_sigma == pytest.approx(0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["gradient.safetensors"]
    read.validate(model.parameters)


def test_a_gradient_that_is_a_view_is_written_whole(tmp_path: Path) -> None:
    wide = torch.randn(4, 6)
    shared = small(**{"layer.view": wide.T[:, ::2]})
    shared.save(tmp_path / "view")
    assert torch.equal(SharedGradient.load(tmp_path / "view").gradients["layer.view"], wide.T[:, ::2])


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "gradient"
    small().save(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="not a readable safetensors file") as told:
        SharedGradient.load(file)
    assert "truncated" in str(told.value)


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_opened(how: str, tmp_path: Path) -> None:
    file, mark = tmp_path / "gradient.safetensors", tmp_path / "mark"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save({"layer.weight": Trap(mark)}, file)
    with pytest.raises(InputError, match="pickle, which is never opened"):
        SharedGradient.load(file)
    assert not mark.exists()


def written(path: Path, tensors: dict[str, object], *, data: int = 0, length: int | None = None) -> Path:
    """A safetensors file with this header and so many bytes of data, which take no room."""
    header = json.dumps({"__metadata__": {"textleak": "1"}, **tensors}).encode()
    with path.open("wb") as file:
        file.write((len(header) if length is None else length).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + data)
    return path


def entry(start: object, end: object, *, dtype: object = "F32", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("tensors", "data", "why"),
    [
        ({"a": entry(0, 4)}, 3, "tells of"),
        ({"a": entry(0, 4)}, 5, "tells of"),
        ({}, 4, "tells of"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, 8, "the tensor b begins at byte 0, where 4"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "the tensor b begins at byte 8, where 4"),
        ({"a": entry(-4, 0)}, 4, "begins at byte -4"),
        ({"a": entry(0, 8)}, 8, "can't have 8 bytes"),
        ({"a": entry(4, 0, shape=(-1,))}, 4, "can't be of shape"),
        ({"a": entry(0, 4, shape=(True,))}, 4, "can't be of shape"),
        ({"a": entry(0, 0, shape=(0, 1 << 70))}, 0, "can't be of shape"),
        ({"a": entry(0, 4, shape=(1,) * 9)}, 4, "can't be of shape"),
        ({"a": entry(0, 8, dtype="I64")}, 8, "of type I64, and a gradient is of F64"),
        ({"a": entry(0, 1, dtype="BOOL")}, 1, "of type BOOL"),
        ({"a": entry(0, 4, dtype=["F32"])}, 4, "not in the format"),
        ({"a": entry(0, "4")}, 4, "not in the format"),
        ({"a": {"dtype": "F32", "shape": [1]}}, 4, "not in the format"),
        ({"a": None}, 0, "not in the format"),
        ({"__metadata__": {"textleak": 1}}, 0, "metadata are not texts"),
        ({"__metadata__": []}, 0, "metadata are not texts"),
    ],
)
def test_a_header_that_lies_is_found_out(
    tensors: dict[str, object], data: int, why: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not a readable safetensors file") as told:
        SharedGradient.load(written(tmp_path / "gradient", tensors, data=data))
    assert why in str(told.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{", b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_header_that_is_no_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "gradient").write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        SharedGradient.load(tmp_path / "gradient")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(range(60)), "begins as a zip archive, which torch.save"),
        (b"\x80\x02}q\x00X\x01\x00\x00", "begins as a pickle does"),
        (b"GGUF\x03\x00\x00\x00" + bytes(60), "begins as a GGUF model does"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "gradient").write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file") as told:
        SharedGradient.load(tmp_path / "gradient")
    assert why in str(told.value)


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"header has 9 MiB.*8 MiB"):
        SharedGradient.load(written(tmp_path / "gradient", {}, data=10 * MIB, length=9 * MIB))
    with pytest.raises(InputError, match="header should have"):
        SharedGradient.load(written(tmp_path / "gradient", {}, length=1 << 63))


def test_a_file_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "gradient", {"a": entry(0, 8 * MIB, shape=(2 * MIB,))}, data=8 * MIB)
    monkeypatch.setattr("textleak.shared.tensors.memory_at_hand", lambda: 7 * MIB)
    with pytest.raises(InputError, match="8 MiB, and there is memory for 7 MiB"):
        SharedGradient.load(path)


def test_a_file_of_holes_is_refused_though_it_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40 << 30
    try:
        path = written(tmp_path / "gradient", {"a": entry(0, size, shape=(size // 4,))}, data=size)
    except OSError:
        pytest.skip("this file system has no such large files")
    if path.stat().st_blocks * 512 >= size:
        pytest.skip("this file system has no holes")
    monkeypatch.setattr("textleak.shared.tensors.memory_at_hand", lambda: 2 * size)
    began = time.process_time()
    with pytest.raises(InputError, match="the rest are holes"):
        SharedGradient.load(path)
    assert time.process_time() - began < 1


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "gradient", {"a": entry(0, 8 * MIB, shape=(2 * MIB,))}, data=8 * MIB)
    empty = torch.empty

    def cut(*shape: object, **options: object) -> torch.Tensor:
        os.truncate(path, 2 * MIB)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", cut)
    with pytest.raises(InputError, match="ends within the tensor a"):
        SharedGradient.load(path)


def test_a_tensor_s_name_of_a_million_letters_is_not_repeated(tmp_path: Path) -> None:
    name = "x" * 1_000_000
    damaged = written(tmp_path / "damaged", {name: entry(0, 4, dtype="I32")}, data=4)
    small(**{name: torch.tensor([float("nan")])}).save(tmp_path / "whole")
    for path in (damaged, tmp_path / "whole"):
        with pytest.raises(InputError) as told:
            SharedGradient.load(path)
        assert len(str(told.value)) < 5000
    with pytest.raises(InputError, match="parameter in the shared gradient") as told:
        small(**{name: torch.zeros(1)}).validate(parameters(**{"layer.weight": (3, 4), "layer.bias": (3,)}))
    assert len(str(told.value)) < 5000


@pytest.mark.parametrize(
    "known",
    [
        {"batch_size": 0},
        {"batch_size": 10**9},
        {"lengths": ()},
        {"lengths": (0,)},
        {"lengths": (10**9,)},
        {"labels": (-1,)},
        {"labels": (2,)},
        {"batch_size": 2, "lengths": (5,)},
        {"lengths": (5, 6), "labels": (1,)},
    ],
)
def test_side_information_that_can_t_be_true_is_refused(known: dict[str, object], tmp_path: Path) -> None:
    told = SideInformation(**known)  # type: ignore[arg-type]
    dataclasses.replace(small(), known=told).save(tmp_path / "gradient")
    with pytest.raises(InputError, match=r"metadata of .* (is damaged|contradict themselves)"):
        SharedGradient.load(tmp_path / "gradient")


@pytest.mark.parametrize(
    "hostile",
    [
        {"share": "\x1b]0;title\x07"},
        {"model": dataclasses.replace(PUBLIC, name="\x1b[2J")},
        {"defenses": (PublicDefense(name="clip\n"),)},
        {"defenses": (PublicDefense(name="clip", options={"to": ["\x9b31m"]}),)},
        {"client": PublicClient(kinds=(("fedavg", {"optimizer": "\x1b[2J"}),))},
        {"share": "x" * 20_000},
    ],
)
def test_metadata_that_a_terminal_would_obey_are_refused(hostile: dict[str, object], tmp_path: Path) -> None:
    dataclasses.replace(small(), **hostile).save(tmp_path / "gradient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a text that can't be shown") as told:
        SharedGradient.load(tmp_path / "gradient")
    assert all(letter.isprintable() or letter == "\n" for letter in str(told.value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    shared = small()
    shared.gradients["layer.bias"][1] = value
    shared.save(tmp_path / "gradient")
    with pytest.raises(InputError, match=r"layer\.bias in .* is not finite"):
        SharedGradient.load(tmp_path / "gradient")


def test_safetensors_without_our_metadata_are_refused(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "plain")
    with pytest.raises(InputError, match="no textleak metadata"):
        SharedGradient.load(tmp_path / "plain")
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "future", {"textleak": "99"})
    with pytest.raises(InputError, match="no textleak metadata of version 1"):
        SharedGradient.load(tmp_path / "future")


@pytest.mark.parametrize("broken", [{}, {"model": "[]"}, {"known": "{"}, {"defenses": '[{"name": 3}]'}])
def test_damaged_metadata_are_refused(broken: dict[str, str], tmp_path: Path) -> None:
    whole = {
        "textleak": "1",
        "model": json.dumps(PUBLIC.__dict__),
        "share": "all",
        "known": "{}",
        "defenses": "[]",
    }
    header = {**whole, **broken} if broken else {"textleak": "1"}
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "gradient", header)
    with pytest.raises(InputError, match=r"metadata .* damaged"):
        SharedGradient.load(tmp_path / "gradient")


def test_no_file_and_no_place_for_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no gradient file"):
        SharedGradient.load(tmp_path / "absent")
    with pytest.raises(InputError, match="no gradient file"):
        SharedGradient.load(tmp_path)
    with pytest.raises(InputError, match="--out"):
        small().save(tmp_path / "no" / "such" / "folder")
    assert not list(tmp_path.iterdir())


def test_a_gradient_of_another_model_names_what_does_not_fit(toy_model: ToyModel) -> None:
    shared, _ = share(toy_model("bert", task="classification"), ["the cat sat"])
    shared.validate(toy_model("bert", task="classification", seed=9).parameters)
    with pytest.raises(InputError, match="parameter"):
        shared.validate(toy_model("distilbert", task="classification").parameters)
    with pytest.raises(InputError, match=r"classifier.* has shape \(3"):
        shared.validate(toy_model("bert", task="classification", num_labels=2).parameters)


def test_names_shapes_and_types_are_checked() -> None:
    fitting = parameters(**{"layer.weight": (3, 4), "layer.bias": (3,)})
    small().validate(fitting)
    with pytest.raises(InputError, match=r"layer\.weight"):
        small().validate(parameters(**{"layer.weights": (3, 4), "layer.bias": (3,)}))
    with pytest.raises(InputError, match=r"shape \(3, 4\).*\(4, 3\)"):
        small().validate(parameters(**{"layer.weight": (4, 3), "layer.bias": (3,)}))
    with pytest.raises(InputError, match="int64"):
        small(**{"layer.bias": torch.zeros(3, dtype=torch.long)}).validate(fitting)
    with pytest.raises(InputError, match="empty"):
        SharedGradient(gradients={}, model=PUBLIC, share="all").validate(fitting)


def test_the_norm_is_over_all_tensors() -> None:
    shared = SharedGradient(
        gradients={"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}, model=PUBLIC, share="all"
    )
    assert shared.norm() == pytest.approx(5.0)


def test_side_information_defaults_to_what_a_server_sees_anyway() -> None:
    assert SideInformation.parse(None, batch_size=1) == {"batch-size", "lengths"}
    assert SideInformation.parse(None, batch_size=2) == {"batch-size"}
    assert SideInformation.parse(" lengths , labels", batch_size=2) == {"lengths", "labels"}
    assert SideInformation.parse("nothing", batch_size=1) == set()
