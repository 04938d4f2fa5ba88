"""Shared set-up: one thread per worker, and the photographs beside the checkout where they exist."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent / ".." / "shared"
# files that train end to end or start processes throughout; single tests elsewhere carry the marker themselves
SLOW = ("ddp/", "test_benchmarks.py", "test_docs.py", "test_faults.py", "test_notebooks.py")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Path:
    """The folder with real photographs; tests that ask for it are skipped where it does not exist."""
    if not SHARED.is_dir():
        pytest.skip("needs the photographs in ../shared")
    return SHARED


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow files, and put the longest ones first, so that none runs alone at the end beside idle processes."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not item.path.name.startswith(("test_faults", "test_benchmarks", "test_notebooks")))
