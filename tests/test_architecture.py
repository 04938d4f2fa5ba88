"""The direction of imports, the public names, and who may know lightning: the house of the library, held by reading it."""

import ast
from pathlib import Path

import pytest

import dasnet_lightning

SOURCE = Path(dasnet_lightning.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# a package may import what stands in its set, and itself
BASE = {"types", "errors", "registry", "storage", "distributed", "rle", "mask_windows"}
ALLOWED = {
    "shared_memory": set(),
    "types": {"shared_memory"},
    "errors": set(),
    "options": {"errors"},
    "registry": {"errors"},
    "distributed": set(),
    "rle": set(),
    "mask_windows": set(),
    "console": {"distributed", "report"},
    "storage": {"errors"},
    "functional": BASE,
    "nn": BASE | {"functional"},
    "detectors": BASE | {"functional", "nn", "storage"},
    "models": BASE | {"functional", "nn", "detectors"},
    "feature_cache": BASE | {"functional", "nn", "detectors"},
    "metrics": BASE | {"functional"},
    "data": BASE | {"visualization"},  # the palette of VOC
    "tasks": BASE | {"functional", "nn", "detectors", "models", "feature_cache", "metrics"},
    "visualization": BASE,
    "report": BASE,
    "inference": BASE | {"functional", "nn", "detectors", "models", "tasks", "data", "visualization", "feature_cache"},
    "callbacks": BASE | {"console", "metrics", "tasks"},
    "training": BASE
    | {"options"}
    | {"functional", "nn", "detectors", "models", "feature_cache", "metrics", "data", "tasks", "callbacks"}
    | {"inference", "report", "console", "visualization"},
    "sweeps": BASE | {"training", "data", "detectors", "report", "console", "options"},
}
ALLOWED["annotation"] = BASE | {"options", "models", "data", "inference", "report", "console"}
LIGHTNING_ALLOWED = {"tasks", "training", "cli", "callbacks", "data/datamodule.py"}


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    package = package_of(path)
    inner = {name.split(".")[1] for name in imported_names(path) if name.startswith("dasnet_lightning.")}
    inner -= {package, "__version__"}
    if package in ("cli", "__init__", "__main__"):
        return
    assert inner <= ALLOWED[package], f"{package} must not import {sorted(inner - ALLOWED[package])}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_lightning_and_albumentations_stay_where_they_belong(path):
    place = str(path.relative_to(SOURCE))
    roots = {name.split(".")[0] for name in imported_names(path)}
    if {"lightning", "pytorch_lightning"} & roots:
        assert place in LIGHTNING_ALLOWED or package_of(path) in LIGHTNING_ALLOWED
    if "albumentations" in roots:
        assert place in {"data/augmentation/transforms.py"}
    detection = {name for name in imported_names(path) if name.startswith("torchvision.models.detection")}
    assert not detection or package_of(path) == "detectors"


def test_public_names_are_few_and_exist():
    names = dasnet_lightning.__all__
    assert len(names) <= 20
    for name in names:
        assert getattr(dasnet_lightning, name) is not None
