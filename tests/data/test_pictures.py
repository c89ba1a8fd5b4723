"""Pictures of every kind are read with a word about each conversion, or refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from textleak.data.pictures import chosen_pictures, read_picture, sample_paths
from textleak.errors import InputError

SHAPE = (3, 32, 32)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def plain(size=(32, 32)) -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(rows)


def test_a_picture_of_the_right_size_comes_as_it_is(tmp_path):
    image = plain()
    picture = read_picture(save(image, tmp_path / "a.png"), SHAPE)
    assert torch.equal(picture.values_CHW, torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255)
    assert picture.notes == ()


def test_a_phone_sized_jpeg_is_resized_with_a_word_and_turned_upright(tmp_path):
    image = Image.new("RGB", (4032, 3024), (200, 30, 30))
    image.paste((30, 30, 200), (0, 0, 4032, 1512))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    picture = read_picture(save(image, tmp_path / "phone.jpg", exif=exif), SHAPE)
    assert any("resized to 32 x 32" in note and "edges cut off" in note for note in picture.notes)
    red, _, blue = picture.values_CHW
    assert float(red[4].mean()) > 0.7 > 0.3 > float(blue[4].mean())


def test_a_jpeg_on_its_side_is_turned_and_its_own_size_is_told(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = Image.new("RGB", (4000, 3000), (200, 30, 30))
    picture = read_picture(save(image, tmp_path / "phone.jpg", exif=exif), SHAPE)
    turned, resized = picture.notes
    assert "EXIF" in turned
    assert "3000 x 4000 pixels resized to 32 x 32" in resized


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "CMYK"),
        (lambda: Image.new("RGBA", (32, 32), (255, 0, 0, 0)), "transparency laid over white"),
        (lambda: Image.new("LA", (32, 32), (10, 0)), "transparency laid over white"),
        (lambda: Image.new("L", (32, 32), 128), "gray taken for all three"),
        (lambda: Image.new("1", (32, 32), 1), "gray taken for all three"),
        (lambda: Image.fromarray(np.full((32, 32), 40000, np.uint16)), "16 bits"),
        (lambda: Image.fromarray(np.linspace(-3, 9, 1024, dtype=np.float32).reshape(32, 32)), "own range"),
    ],
)
def test_unusual_pictures_are_converted_with_a_word(tmp_path, make, words):
    picture = read_picture(save(make(), tmp_path / "a.tif"), SHAPE)
    assert any(words in note for note in picture.notes)
    assert picture.values_CHW.shape == SHAPE
    assert 0 <= float(picture.values_CHW.min()) <= float(picture.values_CHW.max()) <= 1


def test_16_bits_keep_their_brightness_and_transparency_becomes_white(tmp_path):
    deep = read_picture(save(Image.fromarray(np.full((32, 32), 40000, np.uint16)), tmp_path / "a.png"), SHAPE)
    assert float(deep.values_CHW.mean()) == pytest.approx(40000 / 65535, abs=0.01)
    clear = read_picture(save(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), tmp_path / "b.png"), SHAPE)
    assert torch.equal(clear.values_CHW, torch.ones(SHAPE))


def test_a_palette_is_colors_and_a_gray_model_reads_gray(tmp_path):
    path = save(plain().quantize(16), tmp_path / "a.png")
    assert read_picture(path, SHAPE).notes == ()
    gray = read_picture(path, (1, 28, 28))
    assert gray.values_CHW.shape == (1, 28, 28)
    assert any("one channel" in note for note in gray.notes)


def test_of_an_animated_gif_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.gif", SHAPE)
    assert "the first of 3 frames is taken" in picture.notes
    assert float(picture.values_CHW[0].mean()) > 0.9


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    path.write_bytes(
        start + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


def test_what_is_no_picture_is_refused_in_words(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    whole = save(plain((64, 64)), tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bomb(tmp_path / "bomb.png")
    for name, words in {
        "empty.png": "0 bytes",
        "text.png": "not a picture",
        "cut.png": "can't be read",
        "bomb.png": "too large",
        "nothing.png": "no picture file",
        ".": "folder",
    }.items():
        with pytest.raises(InputError) as caught:
            read_picture(tmp_path / name, SHAPE)
        assert words in str(caught.value), name


def test_the_samples_are_twenty_different_pictures():
    pictures = [read_picture(path, SHAPE).values_CHW for path in sample_paths()]
    assert len(pictures) == 20
    for a in range(20):
        for b in range(a):
            assert float((pictures[a] - pictures[b]).square().mean()) > 0.005


def test_without_a_choice_the_first_sample_is_taken_and_numbers_beyond_the_end_are_refused():
    assert chosen_pictures([], [], None, SHAPE)[0].name == "00-sunset.png"
    assert [p.name for p in chosen_pictures([], [3, 1], None, SHAPE)] == ["03-house.png", "01-mountains.png"]
    for index in (20, -1):
        with pytest.raises(InputError, match="out of range"):
            chosen_pictures([], [index], None, SHAPE)


def test_a_folder_is_a_data_set_and_its_folders_are_classes(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        plain().save(tmp_path / name)
    pictures = chosen_pictures([], [0, 2], str(tmp_path), SHAPE)
    assert [picture.label for picture in pictures] == [0, 1]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no picture"):
        chosen_pictures([], [0], str(tmp_path / "none"), SHAPE)


def test_a_data_set_that_is_unknown_or_not_at_hand_is_said(monkeypatch):
    with pytest.raises(InputError, match="Did you mean cifar100"):
        chosen_pictures([], [0], "cifar1000", SHAPE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install datasets"):
        chosen_pictures([], [0], "cifar100", SHAPE)
    with pytest.raises(InputError, match="either of files"):
        chosen_pictures([Path("a.png")], [1], None, SHAPE)
