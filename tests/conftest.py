"""Shared set-up: one thread per worker, and the photographs beside the checkout where they exist."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Path:
    """The folder with real photographs; tests that ask for it are skipped where it does not exist."""
    if not SHARED.is_dir():
        pytest.skip("needs the photographs in ../shared")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first, so that they do not run alone at the end where several processes share the tests."""
    items.sort(key=lambda item: not item.path.name.startswith(("test_faults", "test_benchmarks", "test_notebooks")))
