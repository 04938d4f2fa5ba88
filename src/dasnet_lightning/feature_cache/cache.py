"""Cache on disk for the features of a frozen detector, for images that repeat unchanged (validation, sweeps).

The name of a file is a hash of everything that the features depend on. A different weight, pixel, size or precision is a
different file, so that stale features are never returned.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dasnet_lightning import __version__
from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.frozen import FrozenDetector
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.feature_cache.fingerprint import Stamp, fingerprint, raw_bytes, stamp
from dasnet_lightning.feature_cache.folder import BoundedFolder
from dasnet_lightning.feature_cache.pyramid_file import (
    DamagedFile,
    join_pyramids,
    pack_pyramid,
    read_pyramid,
    split_pyramid,
)
from dasnet_lightning.types import Images, Pyramid

FORMAT = 1  # version of the file format, part of the hash
GIGABYTE = 10**9


class FeatureCache:
    """Cache of `detector.features(images)` in a folder, one file for each image.

    Cached features have the bits and the memory layout of the first computation. Features that are computed again can
    differ in the last bits, with another batch size, number of threads or processor of the same kind. The missing images
    of a batch are computed together.

    Args:
        folder: may be shared by several processes and several detectors.
        max_bytes: bound on the size of the folder in bytes, default 10 GB (`BoundedFolder`).

    Attributes:
        hits: number of images that were read from the cache.
        misses: number of images that were computed.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 10 * GIGABYTE) -> None:
        self.files = BoundedFolder(folder, max_bytes, ".safetensors")
        self.hits = self.misses = 0
        self._known: tuple[nn.Module, Stamp, str] | None = None
        self._warned = False

    @torch.no_grad()
    def features(self, detector: Detector, images: Images) -> Pyramid:
        """Return the feature pyramid of the images; raise ConfigError for a detector that is not a FrozenDetector."""
        if not isinstance(detector, FrozenDetector):
            raise ConfigError(
                f"the feature cache requires a frozen detector (FrozenDetector), given: {type(detector).__name__}"
            )
        if not len(images):
            return detector.features(images)
        keys = self._keys(detector, images)
        pyramids = [self._read(key) for key in keys]
        missing = [index for index, pyramid in enumerate(pyramids) if pyramid is None]
        self.hits += len(pyramids) - len(missing)
        self.misses += len(missing)
        if missing:
            all_missing = len(missing) == len(pyramids)
            computed = detector.features(images if all_missing else images[missing])
            for index, pyramid in zip(missing, split_pyramid(computed), strict=True):
                self.files.write(keys[index], pack_pyramid(pyramid))
                pyramids[index] = pyramid
            if all_missing:
                return computed
        return join_pyramids([pyramid for pyramid in pyramids if pyramid is not None], images.device)

    def _keys(self, detector: FrozenDetector, images: Images) -> list[str]:
        """Return the name of the file of each image."""
        shared = repr((FORMAT, self._fingerprint(detector), tuple(images.shape[1:]), *_environment(images))).encode()
        return [
            hashlib.sha256(shared + hashlib.sha256(raw_bytes(image)).digest()).hexdigest() for image in images.cpu()
        ]

    def _fingerprint(self, detector: FrozenDetector) -> str:
        """Return the fingerprint of the detector, computed again only if its tensors changed, as by a checkpoint."""
        current = stamp(detector)
        if self._known is None or current is None or self._known[:2] != (detector, current):
            computed = fingerprint(detector)
            self._known = None if current is None else (detector, current, computed)
            return computed
        return self._known[2]

    def _read(self, key: str) -> Pyramid | None:
        path = self.files.find(key)
        if path is None:
            return None
        try:
            return read_pyramid(path)
        except OSError:  # removed by another process
            return None
        except DamagedFile as damage:
            self.files.remove(key)
            if not self._warned:
                warnings.warn(f"{path}: damaged ({damage}), recomputing it and any other damaged file", stacklevel=3)
                self._warned = True
            return None


def open_feature_cache(folder: str | Path | None, gigabytes: float) -> FeatureCache | None:
    """Return a cache of at most `gigabytes` * 1e9 bytes, or None without a folder; raise ConfigError for a bad size."""
    if folder is None:
        return None
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"{folder}: feature_cache_gb is {gigabytes}, expected a number above 0")
    return FeatureCache(folder, int(gigabytes * GIGABYTE))


def _environment(images: Images) -> tuple[str, ...]:
    """Return what else determines the bits of the features: versions, device name, dtype and precision."""
    device_type = images.device.type
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    backends: Any = torch.backends  # torch types only some of them
    if device_type == "cuda":
        name, matmul, conv = torch.cuda.get_device_name(images.device), backends.cuda.matmul, backends.cudnn.conv
    else:
        name, matmul, conv = device_type, backends.mkldnn.matmul, backends.mkldnn.conv
    precisions = (matmul.fp32_precision, conv.fp32_precision)  # "tf32" or "bf16" can replace fp32
    return tuple(map(str, (__version__, torch.__version__, name, images.dtype, autocast, *precisions)))
