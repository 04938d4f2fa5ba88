"""Data stay data: the source is read, and what would run code from a file is refused wherever somebody writes it."""

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
READER = ROOT / "src/dasnet_lightning/storage/reading.py"
FILES = sorted(
    path
    for folder in ("src", "experiments", "notebooks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".ipynb")
)
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("dill.load", "cloudpickle.load", "cloudpickle.loads", "torch.hub.load", "pandas.read_pickle", "torch.jit.load"),
}
SAFE_LOADERS = {"SafeLoader", "yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader"}  # the last gives text only


def findings(source: str, reads_tensors: bool = False) -> Iterator[str]:
    """What is wrong with a source, as words. reads_tensors: whether it is the one place that may call torch.load."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names |= {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            head, dot, rest = name.partition(".")
            yield from judge(names.get(head, head) + dot + rest, node, reads_tensors)


def judge(name: str, call: ast.Call, reads_tensors: bool) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in FORBIDDEN:
        yield name
    if name == "torch.load" and not (reads_tensors and given.get("weights_only") == "True"):
        yield "torch.load outside of storage.reading, or without weights_only=True"
    if name.endswith("load_from_checkpoint") and given.get("weights_only") != "True":
        yield "load_from_checkpoint without weights_only=True"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader", ast.unparse(call.args[1]) if len(call.args) > 1 else "")
        if loader not in SAFE_LOADERS:
            yield "yaml.load without a safe loader"
    for option in ("shell", "allow_pickle", "trust_remote_code"):
        if given.get(option, "False") != "False":
            yield f"{option}={given[option]}"


def source_of(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(path):
    assert not list(findings(source_of(path), path == READER))


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=True)",  # not here
        "import torch as t; t.load('x', weights_only=False)",
        "from torch import load; load('x')",
        "import pickle; pickle.loads(b'')",
        "from pickle import load as read; read(f)",
        "import yaml; yaml.load(f)",
        "import yaml; yaml.load(f, Loader=yaml.Loader)",
        "import yaml; yaml.load(f, yaml.UnsafeLoader)",
        "eval('1')",
        "import os; os.system('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import numpy as np; np.load(f, allow_pickle=True)",
        "Task.load_from_checkpoint('x')",
    ],
)
def test_what_could_run_is_found(source):
    assert list(findings(source))


def test_what_cannot_run_passes():
    source = """
import os, pickle, subprocess, torch, yaml
yaml.safe_load(f); yaml.load(f, Loader=yaml.SafeLoader); subprocess.run(["ls"]); pickle.dumps(1); model.eval()
"""
    assert not list(findings(source))
    assert not list(findings("import torch; torch.load(path, weights_only=True)", reads_tensors=True))


def test_the_reader_is_the_one_place_that_loads():
    assert "weights_only=True" in READER.read_text()
    assert len(FILES) > 150


def test_lightning_is_new_enough():
    """Before 2.6.6 a checkpoint's hyper-parameters could run code in spite of weights_only; two versions were malicious."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (floor,) = (item.split(">=")[1] for item in project["dependencies"] if item.startswith("lightning>="))
    assert tuple(map(int, floor.split("."))) >= (2, 6, 6)
