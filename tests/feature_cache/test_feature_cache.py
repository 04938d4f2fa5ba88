"""Cached features equal the computed ones bit by bit, and everything they depend on changes the file name."""

import os
import sys
from functools import partial

import pytest
import torch
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.feature_cache.cache import FeatureCache, open_feature_cache
from dasnet_lightning.feature_cache.fingerprint import fingerprint, stamp
from dasnet_lightning.functional.pooling import max_pool_with_switches
from dasnet_lightning.types import Pyramid
from toy import ToyDetector


class Pooling(ToyDetector):
    """Detector that pools its finest level and returns the switches."""

    def features(self, images: torch.Tensor) -> Pyramid:
        fine = self.stem(images)
        pooled, switches = max_pool_with_switches(fine)
        return Pyramid((fine, pooled), self.strides, (images.shape[2], images.shape[3]), (switches, switches))


KINDS = {"toy": ToyDetector, "with switches": Pooling, "ssd_tiny": partial(build_detector, "ssd_tiny")}


def build(kind: str = "toy") -> FrozenDetector:
    torch.manual_seed(0)
    return FrozenDetector(KINDS[kind](3)).to(memory_format=torch.channels_last)


def images(number: int = 3, size: tuple[int, int] = (64, 64), seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(seed))


def tensors(pyramid: Pyramid) -> list[torch.Tensor]:
    return [*pyramid.levels, *(pyramid.switches or ())]


def assert_same(found: Pyramid, expected: Pyramid) -> None:
    assert (found.strides, found.size) == (expected.strides, expected.size)
    assert (found.switches is None) == (expected.switches is None)
    pairs = list(zip(tensors(found), tensors(expected), strict=True))
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    assert all(a.stride() == b.stride() for a, b in pairs)  # another layout may decode to other last bits


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_come_back_bit_by_bit_in_their_layout(kind, autocast, tmp_path):
    detector, batch = build(kind), images()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = detector.features(batch)
        first = FeatureCache(tmp_path)
        assert_same(first.features(detector, batch), plain)
        again = FeatureCache(tmp_path)
        assert_same(again.features(detector, batch), plain)
    assert (first.hits, first.misses, again.hits, again.misses) == (0, 3, 3, 0)
    assert (plain.switches is not None) == (kind == "with switches")


def test_images_are_found_alone_and_in_any_order(tmp_path):
    detector, batch, cache = build(), images(4), FeatureCache(tmp_path)
    computed = cache.features(detector, batch)
    mixed = cache.features(detector, torch.stack([batch[2], images(1, seed=9)[0], batch[0]]))
    assert (cache.hits, cache.misses) == (2, 5)
    for row, source in ((0, 2), (2, 0)):
        assert all(torch.equal(a[row], b[source]) for a, b in zip(mixed.levels, computed.levels, strict=True))
    new = detector.features(images(1, seed=9))
    assert all(torch.equal(a[1:2], b) for a, b in zip(mixed.levels, new.levels, strict=True))
    assert len(cache.features(detector, batch[:0]).levels[0]) == 0


def test_the_answer_is_a_copy(tmp_path):
    """Who writes into an answer changes neither the file nor later answers."""
    detector, batch, cache = build(), images(1), FeatureCache(tmp_path)
    expected = [level.clone() for level in cache.features(detector, batch).levels]
    for _ in range(2):
        found = cache.features(detector, batch)
        assert all(torch.equal(a, b) for a, b in zip(found.levels, expected, strict=True))
        for level in found.levels:
            level.zero_()


def change_weight(detector: FrozenDetector) -> None:
    with torch.no_grad():
        detector.frozen.module.stem[0].weight[0, 0, 0, 0] += 1e-6


def change_buffer(detector: FrozenDetector) -> None:
    detector.frozen.module.stem[1].running_mean[0] += 1e-6


def load_others(detector: FrozenDetector) -> None:
    torch.manual_seed(1)
    detector.frozen.module.load_state_dict(ToyDetector(3).state_dict())


def replace_a_bias(detector: FrozenDetector) -> None:
    detector.frozen.module.deep[0].bias = nn.Parameter(torch.zeros(12), requires_grad=False)


@pytest.mark.parametrize("change", [change_weight, change_buffer, load_others, replace_a_bias])
def test_a_detector_that_was_written_into_is_another_one(change, tmp_path):
    """The same object in the same cache: its fingerprint is remembered, and remembered wrongly never."""
    detector, batch, cache = build(), images(2), FeatureCache(tmp_path)
    cache.features(detector, batch)
    change(detector)
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert (cache.hits, cache.misses) == (0, 4)


def test_a_buffer_that_no_state_dict_holds_counts(tmp_path):
    detector, batch = build("ssd_tiny"), images(1)
    inner = detector.frozen.module
    assert "mean" not in inner.state_dict()
    FeatureCache(tmp_path).features(detector, batch)
    inner.mean = inner.mean + 1e-3
    cache = FeatureCache(tmp_path)
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert cache.hits == 0


def test_classes_and_plain_attributes_count():
    class Other(ToyDetector):
        pass

    found = set()
    for kind, classes, dropout in (
        (ToyDetector, 3, 0.5),
        (Other, 3, 0.5),
        (ToyDetector, 4, 0.5),
        (ToyDetector, 3, 0.4),
    ):
        torch.manual_seed(0)
        found.add(fingerprint(FrozenDetector(kind(classes, dropout))))
    assert len(found) == 4
    assert fingerprint(build()) == fingerprint(build())


@pytest.mark.parametrize(
    ("one", "other"), [([0.4, 0.5], [0.4, 0.6]), ({"taps": [1, 2]}, {"taps": [1, 3]}), ((1, [2]), (1, [3]))]
)
def test_plain_attributes_may_be_lists_and_dicts(one, other):
    found = []
    for value in (one, other, one):
        detector = build()
        detector.frozen.module.setting = value
        found.append(fingerprint(detector))
    assert found[0] == found[2] != found[1]


def test_what_a_module_keeps_for_itself_does_not_count():
    detector = build()
    detector.frozen.module.anchors, detector.frozen.module.by_size = [], {}
    before = fingerprint(detector)
    detector.frozen.module.anchors.append(torch.ones(1))
    detector.frozen.module.by_size[8, 8] = torch.ones(1)
    assert fingerprint(detector) == before


def test_an_edited_source_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for slope in ("2", "3"):
        (tmp_path / "my_block.py").write_text(
            f"from torch import nn\nclass Block(nn.Module):\n    def forward(self, x):\n        return {slope} * x\n"
        )
        sys.modules.pop("my_block", None)
        detector = build()
        detector.frozen.module.more = __import__("my_block").Block()
        found.append(fingerprint(detector))
    sys.modules.pop("my_block")
    assert found[0] != found[1]


def test_another_pixel_size_or_precision_is_another_image(tmp_path):
    detector, batch, cache = build(), images(1), FeatureCache(tmp_path)
    cache.features(detector, batch)
    pixel = batch.clone()
    pixel[0, 1, 20, 20] += 1e-6
    assert pixel[0, 1, 20, 20] != batch[0, 1, 20, 20]
    for other in (pixel, batch[..., :32, :], batch.reshape(1, 3, 32, 128), batch.flip(3)):
        assert_same(cache.features(detector, other), detector.features(other))
    with torch.autocast("cpu", torch.bfloat16):
        assert cache.features(detector, batch).levels[0].dtype == torch.bfloat16
    assert (cache.hits, cache.misses) == (0, 6)
    cache.features(detector, batch.to(memory_format=torch.channels_last))  # the same pixels
    assert cache.hits == 1


def test_tensors_of_inference_mode_are_watched_by_their_bytes(tmp_path):
    """They count no writes, so the fingerprint is made each time."""
    with torch.inference_mode():
        detector, batch, cache = build(), images(1), FeatureCache(tmp_path)
        assert stamp(detector) is None
        cache.features(detector, batch)
        cache.features(detector, batch)
        assert cache.hits == 1
        detector.frozen.module.stem[0].weight.add_(1)
        assert_same(cache.features(detector, batch), detector.features(batch))


def test_a_detector_that_may_learn_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"requires a frozen detector \(FrozenDetector\), given: ToyDetector"):
        FeatureCache(tmp_path).features(ToyDetector(3), images(1))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_number(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def flip_in_the_header(content: bytes) -> bytes:
    return content.replace(b'\\"strides\\": [4', b'\\"strides\\": [5')


@pytest.mark.parametrize("damage", [cut, flip_a_number, flip_in_the_header, lambda content: b""])
def test_a_damaged_file_is_made_again_with_one_warning(damage, tmp_path):
    detector, batch = build(), images(2)
    FeatureCache(tmp_path).features(detector, batch)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert damage(content) != content
        path.write_bytes(damage(content))
    cache = FeatureCache(tmp_path)
    with pytest.warns(UserWarning, match="damaged") as warned:
        assert_same(cache.features(detector, batch), detector.features(batch))
    assert len(warned) == 1
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert (cache.hits, cache.misses) == (2, 2)


def test_a_bound_keeps_the_first_images_of_a_set_that_does_not_fit(tmp_path):
    """A loop over six images with room for four hits four; a pure LRU cache would hit none."""
    detector, batch = build(), images(6)
    one = FeatureCache(tmp_path / "one")
    one.features(detector, batch[:1])
    (path,) = (tmp_path / "one").iterdir()
    bound = 4 * path.stat().st_size + 10
    cache = FeatureCache(tmp_path / "four", bound)
    with pytest.warns(UserWarning, match="files in use fill its .* GB, no more are stored"):
        cache.features(detector, batch)
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert (cache.hits, cache.misses) == (4, 8)
    assert sum(path.stat().st_size for path in (tmp_path / "four").iterdir()) <= bound

    later = FeatureCache(tmp_path / "four", bound)  # another run: what it does not use goes, longest unused first
    others = images(3, seed=5)
    for image in (batch[0], *others):
        later.features(detector, image[None])
    assert (later.hits, later.misses) == (1, 3)
    again = FeatureCache(tmp_path / "four", bound)
    for image in (batch[0], *others):
        again.features(detector, image[None])
    assert (again.hits, again.misses) == (4, 0)


def test_a_file_that_another_process_removed_in_between_is_missing(tmp_path, monkeypatch):
    detector, batch, cache = build(), images(1), FeatureCache(tmp_path)
    monkeypatch.setattr(cache.files, "find", lambda name: tmp_path / f"{name}.safetensors")
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert_same(cache.features(detector, batch), detector.features(batch))
    assert (cache.hits, cache.misses) == (1, 1)


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_without_sense_is_refused(size, tmp_path):
    with pytest.raises(ConfigError, match=f"feature_cache_gb is {size}, expected a number above 0"):
        open_feature_cache(tmp_path, size)
    assert open_feature_cache(None, size) is None


def test_what_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match=f"{place}: cannot create this folder"):
            FeatureCache(tmp_path / place)


def test_a_folder_that_takes_no_files_costs_one_warning(tmp_path, monkeypatch):
    """As on a full disk: what is there is still read."""
    detector, batch, cache = build(), images(4), FeatureCache(tmp_path)
    cache.features(detector, batch[:1])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", lambda handle, mode: (os.close(handle), full(handle)))
    with pytest.warns(UserWarning, match="No space left on device"):
        assert_same(cache.features(detector, batch[1:]), detector.features(batch[1:]))
    assert_same(cache.features(detector, batch[1:]), detector.features(batch[1:]))  # no second warning
    cache.features(detector, batch[:1])
    assert (cache.hits, cache.misses) == (1, 7)
    assert len(list(tmp_path.iterdir())) == 1  # nothing half written is left


def test_a_folder_that_was_taken_away_costs_one_warning(tmp_path):
    detector, batch, cache = build(), images(2), FeatureCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    with pytest.warns(UserWarning, match="cannot be written"):
        assert_same(cache.features(detector, batch), detector.features(batch))
