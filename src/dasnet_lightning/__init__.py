"""DASNet on PyTorch Lightning: segmentation from boxes on every image and pixel masks on a few.

Public names are imported on first use, so that `import dasnet_lightning` and `dasnet --help` are fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DASNet": "models.dasnet",
    "build_dasnet": "models.dasnet",
    "DETECTORS": "detectors",
    "build_detector": "detectors",
    "DetectionTask": "tasks.detection",
    "SemanticTask": "tasks.semantic",
    "InstanceTask": "tasks.instance",
    "MixedSupervisionDataModule": "data.datamodule",
    "make_split": "data.splits",
    "Segmenter": "inference.segmenter",
    "Segmentation": "inference.segmentation",
    "load": "inference.segmenter",
    "annotate": "annotation.run",
    "export": "inference.export.write",
    "train": "training.run",
    "sweep": "sweeps.run",
    "evaluate": "training.evaluation",
    "box_attention": "functional.attention",
    "DasnetError": "errors",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dasnet_lightning' has no attribute '{name}'")
    return getattr(import_module(f"dasnet_lightning.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
