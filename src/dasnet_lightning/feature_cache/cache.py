"""Features of a frozen detector kept on disk, for images that come again as they are: validation, sweeps, annotation.

A file is found by its content alone: its name is a hash of everything that the features depend on, so that another
weight, pixel, size or precision finds nothing, and nothing stale can be answered.
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

FORMAT = 1  # of the files, part of their names
GIGABYTE = 10**9


class FeatureCache:
    """Answers `detector.features(images)` from a folder where it can; one file for each image.

    Exact means: the bits and the memory layout of an image's features when they were first computed. Computed again in a
    batch of another size, with another number of threads or on another processor of the same kind, they may differ in
    the last bits; cached ones do not. The images of a batch that are missing are computed together.

    folder: may be shared by several processes and by several detectors. max_bytes: see BoundedFolder. hits, misses: how
    many images were found and were not, so far.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 10 * GIGABYTE) -> None:
        self.files = BoundedFolder(folder, max_bytes, ".safetensors")
        self.hits = self.misses = 0
        self._known: tuple[nn.Module, Stamp, str] | None = None
        self._warned = False

    @torch.no_grad()
    def features(self, detector: Detector, images: Images) -> Pyramid:
        """The pyramid of the images. Raises ConfigError for a detector that may still learn."""
        if not isinstance(detector, FrozenDetector):
            raise ConfigError(
                f"the feature cache is for a frozen detector (FrozenDetector), given: {type(detector).__name__}"
            )
        if not len(images):
            return detector.features(images)
        keys = self._keys(detector, images)
        rows = [self._read(key) for key in keys]
        missing = [number for number, row in enumerate(rows) if row is None]
        self.hits += len(rows) - len(missing)
        self.misses += len(missing)
        if missing:
            all_missing = len(missing) == len(rows)
            computed = detector.features(images if all_missing else images[missing])
            for number, row in zip(missing, split_pyramid(computed), strict=True):
                self.files.write(keys[number], pack_pyramid(row))
                rows[number] = row
            if all_missing:
                return computed
        return join_pyramids([row for row in rows if row is not None], images.device)

    def _keys(self, detector: FrozenDetector, images: Images) -> list[str]:
        """The name of each image's file."""
        shared = repr((FORMAT, self._fingerprint(detector), tuple(images.shape[1:]), *_circumstances(images))).encode()
        return [
            hashlib.sha256(shared + hashlib.sha256(raw_bytes(image)).digest()).hexdigest() for image in images.cpu()
        ]

    def _fingerprint(self, detector: FrozenDetector) -> str:
        """That of the detector, made once; a checkpoint that is loaded into the same object makes it another one."""
        now = stamp(detector)
        if self._known is None or now is None or self._known[:2] != (detector, now):
            made = fingerprint(detector)
            self._known = None if now is None else (detector, now, made)
            return made
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
                warnings.warn(f"{path}: damaged ({damage}), it is made again, like others that are", stacklevel=3)
                self._warned = True
            return None


def open_feature_cache(folder: str | Path | None, gigabytes: float) -> FeatureCache | None:
    """The cache in a folder, of at most so many times 1e9 bytes; None without a folder. Raises ConfigError."""
    if folder is None:
        return None
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"{folder}: feature_cache_gb is {gigabytes}, expected a number above 0")
    return FeatureCache(folder, int(gigabytes * GIGABYTE))


def _circumstances(images: Images) -> tuple[str, ...]:
    """What beside the detector and the pixels decides about bits: versions, kind of device, precision."""
    kind = images.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    found: Any = torch.backends  # torch types only some of them
    backends = (found.cuda.matmul, found.cudnn.conv) if kind == "cuda" else (found.mkldnn.matmul, found.mkldnn.conv)
    precisions = [backend.fp32_precision for backend in backends]  # where "tf32" or "bf16" may stand for fp32
    name = torch.cuda.get_device_name(images.device) if kind == "cuda" else kind
    return tuple(map(str, (__version__, torch.__version__, name, images.dtype, autocast, *precisions)))
