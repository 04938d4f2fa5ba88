"""Reading of image files: every mode becomes RGB, and errors describe files that are not images."""

import io
from pathlib import Path

import numpy as np
import pytest
from data_builders import write_picture
from PIL import Image

from dasnet_lightning.data.images import image_size, read_image
from dasnet_lightning.errors import DataError


def photo(size: tuple[int, int] = (20, 30)) -> Image.Image:
    """Red on the left, blue on the right; size is (height, width)."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[:, : size[1] // 2, 0] = 255
    pixels[:, size[1] // 2 :, 2] = 255
    return Image.fromarray(pixels)


def with_orientation(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    photo().convert(mode).save(path)
    image = read_image(path, (20, 30))
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8
    assert image.flags.writeable


def test_colors_survive_palette_alpha_and_cmyk(tmp_path: Path) -> None:
    for mode, name in (("P", "p.png"), ("RGBA", "a.png"), ("CMYK", "c.jpg")):
        photo().convert(mode).save(tmp_path / name)
        image = read_image(tmp_path / name).astype(int)
        assert image[10, 2, 0] > 200 > 60 > image[10, 2, 2]
        assert image[10, 28, 2] > 200 > 60 > image[10, 28, 0]


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    photo().convert("P").save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3)


def test_orientation_is_applied(tmp_path: Path) -> None:
    path = with_orientation(tmp_path / "a.jpg", 6)  # to be turned by 90 degrees clockwise: left becomes top
    for expected in (None, (30, 20)):
        image = read_image(path, expected).astype(int)
        assert image.shape == (30, 20, 3)
        assert image[2, 10, 0] > 200 > image[2, 10, 2]
        assert image[28, 10, 2] > 200 > image[28, 10, 0]


def test_the_stored_picture_is_kept_where_only_it_has_the_annotated_size(tmp_path: Path) -> None:
    image = read_image(with_orientation(tmp_path / "a.jpg", 6), (20, 30)).astype(int)
    assert image.shape == (20, 30, 3)
    assert image[10, 2, 0] > 200


def test_upside_down_is_applied_too(tmp_path: Path) -> None:
    image = read_image(with_orientation(tmp_path / "a.jpg", 3), (20, 30)).astype(int)
    assert image[10, 2, 2] > 200 > image[10, 2, 0]


def test_another_size_than_annotated_says_both(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.jpg", (20, 30))
    with pytest.raises(DataError, match=r"a\.jpg.*30x20 pixels.*says 60x40"):
        read_image(path, (40, 60))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_no_image(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", (200, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a\.{suffix}.*truncated"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"  <!DOCTYPE html><html><body>404</body></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"hello there", "looks like text that begins with 'hello there'"),
        (bytes(range(256)), "does not have a known image format"),
    ],
)
def test_what_is_no_image_is_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=words):
        image_size(path)


def test_missing_files_and_folders_are_described(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path)


def test_the_header_is_checked_before_decoding(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", (20, 30))
    with pytest.raises(DataError, match="30x20 pixels are more than max_pixels=500"):
        read_image(tmp_path / "a.png", max_pixels=500)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    """A header that claims far more pixels than the file could hold."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:22] = data[22:26] = side.to_bytes(4, "little")
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(DataError, match="max_pixels"):
        read_image(tmp_path / "a.bmp")
