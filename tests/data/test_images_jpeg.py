"""Fast JPEG decoder: the same pixels as Pillow for a sound file, None for any other."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasnet_lightning.data.images import decode_sound_jpeg, read_image
from dasnet_lightning.errors import DataError


def pixels(seed: int, size: tuple[int, int] = (90, 130)) -> np.ndarray:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))


def encode(seed: int = 0, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def decode_pillow(data: bytes) -> np.ndarray | None:
    try:
        return np.array(Image.open(io.BytesIO(data)))
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("more", [{}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_sound_files_have_the_pixels_of_pillow(quality: int, subsampling: str, more: dict) -> None:
    data = encode(quality, quality=quality, subsampling=subsampling, **more)
    fast = decode_sound_jpeg(data)
    assert fast is not None
    np.testing.assert_array_equal(fast, decode_pillow(data))
    assert fast.flags.writeable
    assert fast.flags.c_contiguous


def test_photographs_have_the_pixels_of_pillow(shared: Path) -> None:
    files = sorted((shared / "data").rglob("JPEGImages/*.jpg"))[::50]
    assert files
    for file in files:
        fast = decode_sound_jpeg(file.read_bytes())
        assert fast is not None
        np.testing.assert_array_equal(fast, decode_pillow(file.read_bytes()))


def test_what_is_not_sound_is_left_to_pillow() -> None:
    data = encode()
    scan = data.index(b"\xff\xda")
    assert decode_sound_jpeg(encode(progressive=True)) is None
    assert decode_sound_jpeg(data[:-2]) is None
    assert decode_sound_jpeg(data[: len(data) // 2]) is None
    assert decode_sound_jpeg(data + b"more") is None
    assert decode_sound_jpeg(data.replace(b"\xff\xc4", b"\xff\xef")) is None, "no tables: OpenCV invents some"
    assert decode_sound_jpeg(data[: scan + 40] + b"\xff\xc8" + data[scan + 42 :]) is None, "a marker among the pixels"
    for strange in (b"", b"\xff", b"\xff\xd8\xff", data[:scan], data[: scan + 4], bytes(300)):
        assert decode_sound_jpeg(strange) is None


def test_damaged_files_are_never_decoded_where_pillow_raises(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raised = same = 0
    for trial in range(400):
        data = bytearray(encode(trial % 5, quality=90))
        for place in rng.integers(0, len(data) if trial % 2 else 700, rng.integers(1, 5)):
            data[place] = 255 if rng.random() < 0.3 else rng.integers(256)
        slow = decode_pillow(bytes(data))
        fast = decode_sound_jpeg(bytes(data))
        raised += slow is None
        if slow is None:
            path = tmp_path / "a.jpg"
            path.write_bytes(data)
            with pytest.raises(DataError, match=r"a\.jpg"):
                read_image(path)
        elif fast is not None and fast.shape == slow.shape:
            np.testing.assert_array_equal(fast, slow)
            same += 1
    assert raised > 50
    assert same > 50
