"""The software that a run was started with: versions and the commit of the library's checkout. Imports torch on use only."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dasnet_lightning

PACKAGE = Path(dasnet_lightning.__file__).parent


def describe_start() -> dict[str, Any]:
    """Return the time, the versions and the commit of this start, as `run.json` holds them."""
    import lightning
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "dasnet_lightning": dasnet_lightning.__version__,
        **describe_checkout(PACKAGE),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def describe_checkout(package: Path) -> dict[str, str | bool | None]:
    """Return the commit of a package's git checkout, and whether files of the package differ from it.

    Both are None if git does not track the package: it is installed, perhaps inside another project's checkout.
    """
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    commit = _git(package, "rev-parse", "HEAD") if tracked else None
    changes = _git(package, "status", "--porcelain", "--", ".") if commit else None
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints about a folder, or None if it fails or is not installed."""
    # inside a git hook these variables name the repository of the hook
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
