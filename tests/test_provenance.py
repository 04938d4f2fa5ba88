"""`run.json` says with which software each start of a run was made, and refuses no start because of it."""

import json
import platform
import subprocess

import lightning
import pytest
import torch

import dasnet_lightning
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.training import provenance
from dasnet_lightning.training.config import RunConfig, claim_folder


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of a package."""
    package = tmp_path / "checkout" / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "-q", "checkout")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "first")
    return package


def read_run(folder):
    return json.loads((folder / "run.json").read_text())


def test_each_start_adds_its_versions(tmp_path, monkeypatch):
    config = RunConfig(data="shapes", out=str(tmp_path))
    claim_folder(config)
    monkeypatch.setattr(dasnet_lightning, "__version__", "9.0")
    monkeypatch.setattr(provenance, "describe_checkout", lambda package: {"commit": "abc", "dirty": True})
    claim_folder(config)
    first, second = read_run(tmp_path)["provenance"]
    assert first["torch"] == torch.__version__
    assert first["lightning"] == lightning.__version__
    assert first["python"] == platform.python_version()
    assert first["dasnet_lightning"] != "9.0" == second["dasnet_lightning"]
    assert (second["commit"], second["dirty"]) == ("abc", True)
    assert first["started"] <= second["started"]


def test_a_run_of_a_version_without_provenance_is_continued(tmp_path):
    config = RunConfig(data="shapes", out=str(tmp_path), seed=3)
    claim_folder(config)
    old = read_run(tmp_path)
    del old["provenance"]
    (tmp_path / "run.json").write_text(json.dumps(old))
    claim_folder(config)
    assert len(read_run(tmp_path)["provenance"]) == 1
    with pytest.raises(ConfigError, match="seed was 3 and is 4"):
        claim_folder(RunConfig(data="shapes", out=str(tmp_path), seed=4))
    assert len(read_run(tmp_path)["provenance"]) == 1, "a refused start leaves the file alone"


def test_commit_and_changes_of_a_checkout(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")
    assert provenance.describe_checkout(checkout) == {"commit": commit, "dirty": False}
    (checkout.parent / "notes.txt").write_text("beside the package")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside a git hook
    assert provenance.describe_checkout(checkout) == {"commit": commit, "dirty": False}
    (checkout / "new.py").write_text("")
    assert provenance.describe_checkout(checkout) == {"commit": commit, "dirty": True}


def test_a_package_that_is_not_a_checkout_has_no_commit(checkout, tmp_path, monkeypatch):
    unknown = {"commit": None, "dirty": None}
    installed = checkout.parent / "site-packages" / "other"  # inside another project's checkout
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert provenance.describe_checkout(installed) == unknown
    monkeypatch.setenv("PATH", str(tmp_path))  # git is not installed
    assert provenance.describe_checkout(checkout) == unknown
