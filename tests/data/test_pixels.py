"""One conversion of pixels: files, PIL images and arrays give the same, and brightness never depends on one picture."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasnet_lightning.data import pixels
from dasnet_lightning.data.images import read_image
from dasnet_lightning.data.pixels import FLOAT_RANGE, ImageRange, convert_to_rgb, find_image_range
from dasnet_lightning.errors import ConfigError, DataError


def photo() -> np.ndarray:
    """Colors that differ in every channel."""
    y, x = np.mgrid[:20, :30]
    return np.stack([x * 8, y * 12, (x + y) * 5], axis=2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_a_pil_image_of_any_mode_is_what_its_file_is(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(photo()[:, :, 0].astype(np.uint16) * 256)
    elif mode == "F":
        image = Image.fromarray(photo()[:, :, 0].astype(np.float32) / 255)
    else:
        image = _converted(mode)
    path = tmp_path / "a.tif"
    image.save(path)
    expected = read_image(path)
    assert (convert_to_rgb(image) == expected).all()
    with Image.open(path) as opened:
        assert (convert_to_rgb(opened) == expected).all()


def _converted(mode: str) -> Image.Image:
    image = Image.fromarray(photo())
    return image.convert("L").convert(mode) if mode in ("I", "LA") else image.convert(mode)


def test_orientation_of_a_pil_image_is_applied_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert (convert_to_rgb(image) == np.rot90(photo(), -1)).all()
    assert (read_image(tmp_path / "a.png") == np.rot90(photo(), -1)).all()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (photo(), photo()),
        (photo()[:, :, 0], photo()[:, :, :1].repeat(3, axis=2)),
        (photo()[:, :, :1], photo()[:, :, :1].repeat(3, axis=2)),
        (photo()[:, :, :2], photo()[:, :, :1].repeat(3, axis=2)),
        (np.dstack([photo(), photo()[:, :, 0]]), photo()),
        (photo().astype(np.uint16) * 257, photo()),
        (photo().astype(">u2") * 257, photo()),
        (photo().astype(np.float32) / 255, photo()),
        (photo().astype(np.float64) / 255, photo()),
        (photo()[:, :, 0] > 100, np.where(photo()[:, :, :1] > 100, 255, 0).repeat(3, axis=2)),
    ],
)
def test_arrays_become_rgb(array: np.ndarray, expected: np.ndarray) -> None:
    result = convert_to_rgb(array)
    assert result.dtype == np.uint8
    assert (result == expected).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"shape \(3, 20, 30\) is not an image"),
        (np.zeros(7, np.uint8), "is not an image"),
        (np.zeros((0, 5, 3), np.uint8), "is not an image"),
        (np.zeros((20, 30), np.int64), "type int64 have no known range"),
        (np.full((20, 30), 200.0), "values from 200 to 200, expected 0 to 1 for float64"),
        (np.full((20, 30), -0.5, np.float32), "values from -0.5 to -0.5, expected 0 to 1"),
        (np.full((20, 30), np.nan), "not finite"),
        (np.full((20, 30), 70_000, np.int32), "expected 0 to 65535"),
    ],
)
def test_other_arrays_are_refused_in_one_sentence(array: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        convert_to_rgb(array)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_brightness_does_not_depend_on_the_brightest_pixel_of_a_picture(tmp_path: Path, dtype: type) -> None:
    top = 65535 if dtype == np.uint16 else 1.0
    dim = np.full((20, 30), top / 16, dtype)
    bright = dim.copy()
    bright[0, 0] = top
    for name, array in (("dim", dim), ("bright", bright)):
        Image.fromarray(array).save(tmp_path / f"{name}.tif")
    for first, second in ((dim, bright), (tmp_path / "dim.tif", tmp_path / "bright.tif")):
        values = [read_image(item) if isinstance(item, Path) else convert_to_rgb(item) for item in (first, second)]
        assert values[0][10, 10, 0] == values[1][10, 10, 0] == 16
        assert values[1][0, 0, 0] == 255


def test_a_range_of_the_data_set_scales_all_pictures_alike(tmp_path: Path) -> None:
    for number, peak in enumerate((900, 4000, 30)):
        Image.fromarray(np.linspace(0, peak, 600).reshape(20, 30).astype(np.uint16)).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.iterdir())
    found = find_image_range(paths)
    assert found == ImageRange(0, 4095)
    assert [int(read_image(path, image_range=found).max()) for path in paths] == [56, 249, 2]
    assert read_image(paths[1], image_range=ImageRange(100, 1100)).max() == 255  # clipped


def test_the_range_is_found_from_a_sample(tmp_path: Path) -> None:
    def save(name: str, array: np.ndarray) -> list[Path]:
        Image.fromarray(array).save(tmp_path / name)
        return [tmp_path / name]

    ramp = np.linspace(0, 1, 600).reshape(20, 30)
    assert find_image_range(save("a.png", photo())) is None
    assert find_image_range([]) is None
    assert find_image_range(save("b.tif", ramp.astype(np.float32) * 0.5)) == FLOAT_RANGE
    assert find_image_range(save("c.tif", (ramp * 300).astype(np.float32))) == ImageRange(0, 300)
    assert find_image_range(save("d.tif", (ramp * 300 - 20).astype(np.float32))) == ImageRange(-20, 280)
    assert find_image_range(save("e.tif", np.round(ramp * 300).astype(np.float32))) == ImageRange(0, 1023)
    assert find_image_range(save("f.png", np.zeros((20, 30), np.uint16))) == ImageRange(0, 255)
    assert find_image_range(save("g.png", (ramp * 65000).astype(np.uint16))) == ImageRange(0, 65535)
    many = [tmp_path / "a.png"] * 99 + [tmp_path / "g.png"]
    assert find_image_range(many, sample=100) == ImageRange(0, 65535)
    (tmp_path / "h.tif").write_bytes(b"II*\0")
    assert find_image_range([tmp_path / "h.tif", tmp_path / "g.png"]) == ImageRange(0, 65535)
    with pytest.raises(DataError, match=r"i\.tif: has pixels that are not finite"):
        find_image_range(save("i.tif", np.full((20, 30), np.nan, np.float32)))


def test_images_of_eight_bits_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.tif", "c.jpg", "d.bmp")]
    for path in paths:
        Image.fromarray(photo()).save(path)
    opened: list[str] = []
    whole_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path).name) or whole_open(path))
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("an image was decoded"))
    assert find_image_range([path for path in paths for _ in range(1000)]) is None
    assert len(opened) <= 64
    assert set(opened) == {"a.png", "b.tif"}


def test_a_file_out_of_range_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 30), 300, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: has values from 300 to 300, expected 0 to 1 for float32"):
        read_image(tmp_path / "a.tif")


def test_an_empty_range_is_refused() -> None:
    for low, high in ((1, 1), (2, 1), (0, float("inf"))):
        with pytest.raises(ConfigError, match="is empty"):
            ImageRange(low, high)


def test_scaling_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels._announce.cache_clear()
    Image.fromarray(np.full((20, 30), 1000, dtype=np.uint16)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        read_image(tmp_path / "a.png")
        read_image(tmp_path / "a.png")
    assert [record.message for record in caplog.records] == [
        "images with pixels of type uint16 are scaled from 0..65535 to 0..255"
    ]
