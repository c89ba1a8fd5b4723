"""State dicts as people have them: read without running anything, and given the model's own names."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from textleak.errors import InputError
from textleak.shared.formats import Names, plain_name, read_state

TENSORS = {"encoder.weight": torch.arange(6.0).view(2, 3), "encoder.bias": torch.ones(2)}


class Runs:
    """What a pickle that runs code is made of."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth", "a.bin"])
def test_a_state_dict_is_read_from_a_file_of_either_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(TENSORS, path) if path.suffix == ".safetensors" else torch.save(TENSORS, path)
    assert same(read_state(path).tensors)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "gradients", "my grads"])
def test_what_a_training_loop_saves_along_with_it_is_passed_over(key: str, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}
    torch.save({key: TENSORS, "epoch": 3, "optimizer": optimizer}, tmp_path / "a.pt")
    assert same(read_state(tmp_path / "a.pt").tensors)


def test_tensors_that_are_not_floating_numbers_are_passed_over_by_name(tmp_path: Path) -> None:
    whole = {**TENSORS, "position_ids": torch.arange(5), "mask": torch.ones(3, dtype=torch.bool)}
    save_file(whole, tmp_path / "a.safetensors")
    torch.save(whole, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        state = read_state(tmp_path / name)
        assert same(state.tensors)
        assert set(state.others) == {"position_ids", "mask"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_as_one(kind: str, tmp_path: Path) -> None:
    places = {}
    for number, name in enumerate(TENSORS):
        file = f"part-{number}.{kind}"
        part = {name: TENSORS[name]}
        save_file(part, tmp_path / file) if kind == "safetensors" else torch.save(part, tmp_path / file)
        places[name] = file
    index = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (tmp_path / f"{index}.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(read_state(tmp_path).tensors)
    (tmp_path / places["encoder.bias"]).unlink()
    with pytest.raises(InputError, match=r"1 are missing"):
        read_state(tmp_path)


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "..", "sub/a.safetensors"])
def test_an_index_leads_nowhere_else(place: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(InputError, match="names the file"):
        read_state(tmp_path)


def test_a_pickle_of_more_than_weights_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.bias": Runs()}, "a.pt")
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "a.pt")
    assert "more than weights" in refused.value.why
    assert "weights_only" not in str(refused.value)  # torch's own words advise to run it
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "a.pt")
    assert "torch.nn.modules.linear.Linear" in refused.value.why
    assert "state_dict()" in refused.value.why


def test_a_packed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "packed.pt")
    assert "is packed" in refused.value.why


def test_an_archive_that_is_damaged_at_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2)}, path)
    whole = path.read_bytes()
    many_disks = whole.rindex(b"PK\x06\x07") + 16  # of the 64-bit locator: how many disks there are
    path.write_bytes(whole[:many_disks] + b"\x07" + whole[many_disks + 1 :])
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(path)
    assert "archive is damaged" in refused.value.why


def test_a_tensor_larger_than_what_it_is_made_of_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1_000_000_000)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "a.pt")
    assert "is made of 4 bytes" in refused.value.why


ORDERED = Names(TENSORS.items())


@pytest.mark.parametrize("inside", [False, True])
def test_gradients_in_the_order_of_the_parameters_get_their_names(inside: bool, tmp_path: Path) -> None:
    listed = tuple(TENSORS.values())
    torch.save({"grads": listed, "loss": 0.7} if inside else listed, tmp_path / "a.pt")
    assert same(read_state(tmp_path / "a.pt").named(ORDERED).tensors)


def test_a_parameter_without_a_gradient_keeps_its_place(tmp_path: Path) -> None:
    torch.save([None, TENSORS["encoder.bias"]], tmp_path / "a.pt")
    assert set(read_state(tmp_path / "a.pt").named(ORDERED).tensors) == {"encoder.bias"}


def test_weights_in_the_order_of_the_state_dict_get_their_names(tmp_path: Path) -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))  # whose buffers stand between its parameters
    np.savez(tmp_path / "a.npz", *[tensor.numpy() for tensor in network.state_dict().values()])
    found = read_state(tmp_path / "a.npz").named(Names.of(network)).tensors
    assert found.keys() == dict(network.named_parameters()).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.named_parameters())


def test_tensors_without_names_are_refused_where_their_order_is_not_the_model_s(tmp_path: Path) -> None:
    torch.save([*TENSORS.values()][::-1], tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"in that place the model has encoder.weight of \(2, 3\)"):
        read_state(tmp_path / "a.pt").named(ORDERED)
    torch.save([TENSORS["encoder.weight"]], tmp_path / "a.pt")
    with pytest.raises(
        InputError, match="1 tensors without names, and the model has 2 parameters"
    ) as refused:
        read_state(tmp_path / "a.pt").named(ORDERED)
    assert "by name" in refused.value.fix


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_of_numpy_s_are_read_with_their_names(packed: bool, tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    arrays["encoder.weight"] = np.asfortranarray(arrays["encoder.weight"]).astype(">f4")
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", **arrays, step=np.array(3))
    state = read_state(tmp_path / "a.npz")
    assert same(state.tensors)
    assert state.others == {"step": "int64"}


def test_arrays_of_objects_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", w=np.array([Runs()], object))
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "a.npz")
    assert "objects" in refused.value.why
    assert not (tmp_path / "ran").exists()


def test_arrays_that_unpack_beyond_measure_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(100_000_000, np.float32))
    with pytest.raises(InputError, match="can't be read as weights") as refused:
        read_state(tmp_path / "a.npz")
    assert "unpack to" in refused.value.why


def test_an_array_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.zeros(64, np.float32))
    for wrong in (b"(99,)", b"(-4,)"):
        with (
            zipfile.ZipFile(tmp_path / "a.npz") as source,
            zipfile.ZipFile(tmp_path / "b.npz", "w") as target,
        ):
            target.writestr("w.npy", source.read("w.npy").replace(b"(64,)", wrong))
        with pytest.raises(InputError, match="can't be read as weights"):
            read_state(tmp_path / "b.npz")


def test_damaged_arrays_are_errors_of_the_file(tmp_path: Path) -> None:
    draws, damaged = random.Random(7), 0
    for packed in (np.savez, np.savez_compressed):
        packed(tmp_path / "a.npz", w=np.ones((5, 3), np.float32), b=np.arange(4.0))
        whole = (tmp_path / "a.npz").read_bytes()
        for _ in range(200):
            content = bytearray(whole)
            content[draws.randrange(len(content))] = draws.randrange(256)
            (tmp_path / "b.npz").write_bytes(content)
            try:
                read_state(tmp_path / "b.npz")
            except InputError:
                damaged += 1
    assert damaged > 100


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no archive", b"\x80\x02}."])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz"])
def test_what_is_no_state_dict_is_told(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="can't be read as weights"):
        read_state(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="named pipes in folders are POSIX's")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="can't be read") as refused:
            read_state(tmp_path / name)
        assert "named pipe" in refused.value.why


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        read_state(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="There are no weights in the folder"):
        read_state(tmp_path)
    (tmp_path / "a.pkl").write_bytes(b"")
    with pytest.raises(InputError, match="of no format"):
        read_state(tmp_path / "a.pkl")


def test_quantized_weights_and_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    four = {
        "q.weight": torch.zeros(8, 1, dtype=torch.uint8),
        "q.weight.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8),
        "q.weight.absmax": torch.ones(2),
    }
    save_file(four, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"quantized \(q.weight") as refused:
        read_state(tmp_path / "a.safetensors").check_usable()
    assert "adapters" in refused.value.fix
    torch.save({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a in .* is not finite"):
        read_state(tmp_path / "a.pt").check_usable()


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.bert.x.weight", "bert.x.weight"),
        ("_orig_mod.module.bert.x.weight", "bert.x.weight"),
        ("module._orig_mod.bert.x.weight", "bert.x.weight"),
        ("bert.layer._orig_mod.x.weight", "bert.layer.x.weight"),
        ("_module.bert.x.weight", "bert.x.weight"),
        ("_fsdp_wrapped_module.bert._fsdp_wrapped_module.x.weight", "bert.x.weight"),
        ("base_model.model.bert.q.base_layer.weight", "bert.q.weight"),
        ("base_model.model.bert.q.lora_A.default.weight", "bert.q.lora_A.weight"),
        ("base_model.model.classifier.modules_to_save.default.weight", "classifier.weight"),
        ("base_model.model.classifier.original_module.weight", "classifier.original_module.weight"),
        ("bert.x.weight.grad", "bert.x.weight"),
        ("inner.module.weight", "inner.module.weight"),
    ],
)
def test_what_wrappers_write_around_a_name_is_taken_away(wrapped: str, plain: str) -> None:
    assert plain_name(wrapped) == plain


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "0.auto_model.", "bert.", "module.bert."])
def test_a_missing_or_added_prefix_of_the_base_model_is_told(prefix: str) -> None:
    names = Names([("bert.encoder.weight", torch.zeros(2, 3)), ("bert.encoder.bias", torch.zeros(2))])
    fitted = names.fit({prefix + name: tensor for name, tensor in TENSORS.items()}, "the file")
    assert set(fitted.tensors) == {"bert.encoder.weight", "bert.encoder.bias"}
    assert not fitted.unknown


@pytest.mark.parametrize("prefix", ["bert.layer.5.", "layer.5.", "model.layer.5.", "layer.0.5.", ""])
def test_a_layer_that_the_model_lacks_is_none_of_its_others(prefix: str) -> None:
    names = Names([("bert.layer.0.weight", torch.zeros(2, 3)), ("bert.layer.0.bias", torch.zeros(2))])
    other = {prefix + "weight": torch.ones(2, 3), prefix + "bias": torch.ones(2)}
    with pytest.raises(InputError, match="2 are of no parameter"):
        names.fit(other, "the file")
    own = {"layer.0.weight": torch.ones(2, 3), "layer.0.bias": torch.ones(2)}
    fitted = names.fit(own | other, "the file")
    assert set(fitted.tensors) == {"bert.layer.0.weight", "bert.layer.0.bias"}
    assert all(torch.equal(fitted.tensors["bert." + name], tensor) for name, tensor in own.items())
    assert set(fitted.unknown) == set(other)


def test_a_tied_parameter_is_found_under_each_of_its_names() -> None:
    table = nn.Parameter(torch.zeros(4, 2))
    names = Names([("bert.embeddings.weight", table), ("cls.decoder.weight", table)])
    for name in ("bert.embeddings.weight", "cls.decoder.weight"):
        assert set(names.fit({name: torch.ones(4, 2)}, "it").tensors) == {"bert.embeddings.weight"}


def test_another_model_s_names_and_shapes_are_told() -> None:
    names = Names([("bert.encoder.weight", torch.zeros(2, 3)), ("bert.encoder.bias", torch.zeros(2))])
    with pytest.raises(InputError, match="2 are of no parameter"):
        names.fit({"gpt.h.w": torch.ones(2), "gpt.h.b": torch.ones(2)}, "the file")
    with pytest.raises(InputError, match=r"shape \(5,\)"):
        names.fit({"bert.encoder.bias": torch.ones(5)}, "the file")
    with pytest.raises(InputError, match="called alike"):
        names.fit({"bert.encoder.bias": torch.ones(2), "module.bert.encoder.bias": torch.ones(2)}, "the file")
