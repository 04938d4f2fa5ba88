"""Every command and Python block of the README and of the guides is run as it is printed, with small data and few steps.

All blocks share one data set and one trained run. A comment above a block changes what happens with it:

    <!-- test: parse -->   options are parsed, nothing is run
    <!-- skip: REASON -->  the block is not run

Scripts of the repository are not run here: they must exist and have the options that a page gives them.
"""

import re
import shlex
import shutil
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torchvision
import yaml
from PIL import Image

import dasnet_lightning
from dasnet_lightning.cli.main import COMMANDS, main
from dasnet_lightning.data.synthetic.dataset import write_synthetic

ROOT = Path(__file__).resolve().parents[1]
SITE = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "api").glob("*.md"))]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *SITE]
LANGUAGES = {"bash", "python", "yaml", "toml", "text", "bibtex"}
SHORT_RUN = {
    "image_size": 64,
    "detector_batch_size": 2,
    "batch_size": 2,
    "detector_steps": 2,
    "steps": 2,
    "num_workers": 0,
    "accelerator": "cpu",
    "precision": "32-true",
}
SHORT_DEMO = {
    "images": 48,
    **{name: SHORT_RUN[name] for name in ("detector_steps", "steps", "num_workers", "precision")},
}
SHORT = {
    "train": SHORT_RUN,
    "demo": {**SHORT_DEMO, "accelerator": "cpu"},
    "sweep": {**SHORT_RUN, "detector": "ssd_tiny", "seeds": 1},
    "annotate": {"device": "cpu"},
}
NOT_OURS = {  # commands that set up or test the project itself
    "python -m pip install uv",
    "python -m pip install .",
    "python -m pip install .[timm,transformers]",
    "uv run pytest",
}


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    marker: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, each with the comment above it."""
    blocks, lines = [], page.read_text().splitlines()
    start = None
    for number, line in enumerate(lines):
        if line.strip().startswith("```") and start is None:
            start = number
        elif line.strip() == "```":
            above = next((text for text in reversed(lines[:start]) if text.strip()), "")
            marker = re.fullmatch(r"<!-- (.*) -->", above.strip())
            text = "\n".join(lines[start + 1 : number]) + "\n"
            blocks.append(Block(page, start + 1, lines[start].strip()[3:], text, marker[1] if marker else ""))
            start = None
    assert start is None, f"{page}: a block is not closed"
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
# the detector's page is executed in whole by tests/detectors/test_tutorial.py
RUN = [block for block in BLOCKS if block.language in ("bash", "python") and not block.marker.startswith("skip: ")]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as lists of words, without variables that are set in front of them."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [[*_without_variables(command)] for command in words if command]


def _without_variables(command: list[str]) -> list[str]:
    return _without_variables(command[1:]) if re.fullmatch(r"[A-Z_]+=\S*", command[0]) else command


def dasnet_arguments(command: list[str]) -> list[str] | None:
    """The arguments of a `dasnet` command, also of one that torchrun or srun starts; None for other commands."""
    for start in (["uv", "run", "dasnet"], ["-m", "dasnet_lightning.cli.main"]):
        for index in range(len(command)):
            if command[index : index + len(start)] == start:
                return command[index + len(start) :]
    return None


def parse(arguments: list[str]) -> None:
    """Parse a command's options without running it."""
    module = import_module(f"dasnet_lightning.cli.{COMMANDS[arguments[0]].module}")
    parser = ArgumentParser(allow_abbrev=False)
    module.add_arguments(parser)
    parser.parse_args(arguments[1:])


def check_script(path: str, arguments: list[str]) -> None:
    """A script of the repository exists and has all options that the page gives it."""
    script = ROOT / path
    assert script.is_file()
    sources = "".join(module.read_text() for module in script.parent.glob("*.py"))
    for option in (word for word in arguments if word.startswith("--")):
        assert f'"{option}"' in sources, f"{path} has no option {option}"


def run_shell(block: Block) -> None:
    for command in commands(block.text):
        arguments = dasnet_arguments(command)
        if command[:3] == ["uv", "run", "python"]:
            check_script(command[3], command[4:])
        elif arguments is None:
            assert " ".join(command) in NOT_OURS, f"{block.name}: mark this block, or teach the test about {command}"
        elif block.marker == "test: parse":
            parse(arguments)
        else:
            short = {} if "--help" in arguments else SHORT.get(arguments[0], {})
            options = [word for name, value in short.items() for word in (f"--{name.replace('_', '-')}", str(value))]
            assert main([*arguments, *options]) == 0


def run_python(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    if "dasnet_lightning.train(" in block.text:
        train = getattr(dasnet_lightning, "train", None)
        if train is None:
            pytest.skip("dasnet_lightning.train does not exist yet")

        def short_train(*data, **options):
            return train(*data, **{"detector": "ssd_tiny", **options, **SHORT_RUN})

        monkeypatch.setattr(dasnet_lightning, "train", short_train)
    if "dasnet_lightning.sweep(" in block.text:
        sweep = dasnet_lightning.sweep

        def short_sweep(*data, **options):
            return sweep(
                *data, **{**options, "seeds": 1, "out": "runs/sweep_python", "detector": "ssd_tiny", **SHORT_RUN}
            )

        monkeypatch.setattr(dasnet_lightning, "sweep", short_sweep)
    exec(compile(block.text, block.name, "exec"), {"__name__": "docs"})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with the names that the pages use: DATA, PHOTOS, photo.jpg, and the run of the README's commands."""
    folder = tmp_path_factory.mktemp("docs")
    write_synthetic(folder / "DATA", num_train=48, num_val=6, size=64)
    for file in (folder / "DATA").rglob("*.json"):
        file.write_text(file.read_text().replace('"disc"', '"dog"'))
    (folder / "PHOTOS").mkdir()
    shutil.copy(folder / "DATA" / "val" / "000001.jpg", folder / "PHOTOS")
    Image.open(folder / "PHOTOS" / "000001.jpg").resize((400, 400)).save(folder / "photo.jpg")
    (folder / "experiments").symlink_to(ROOT / "experiments")

    def download(url, **options):
        """Return untrained weights of the network that the name of the file begins with."""
        name = next(name for name in ("mobilenet_v2", "resnet18") if name in url)
        return torchvision.models.get_model(name).state_dict()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("torchvision.models._api.load_state_dict_from_url", download)
        patch.setattr("dasnet_lightning.detectors.downloads.check_connection", lambda url: None)
        (train,) = [block for block in BLOCKS if block.page.name == "README.md" and "dasnet train" in block.text]
        run_shell(train)
        (demo,) = [block for block in BLOCKS if block.page.name == "quick_start.md" and "dasnet demo" in block.text]
        run_shell(demo)
        yield folder


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_block_runs(block, workspace, monkeypatch):
    run_shell(block) if block.language == "bash" else run_python(block, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_are_written_alike(page):
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{block.name}: name the language of the block, one of {sorted(LANGUAGES)}"
        if block.language == "bash" and not block.marker.startswith("test: parse"):
            bare = re.findall(r"^(?:dasnet|pytest|python experiments).*", block.text, re.MULTILINE)
            assert not bare, f"{block.name}: write 'uv run {bare[0]}'"


def test_the_readme_sets_up_with_two_commands():
    blocks = [block.text for block in BLOCKS if block.page.name == "README.md"]
    assert blocks[0] == "python -m pip install uv && uv run dasnet demo\nuv run pytest\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" not in target and "../actions/" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text().replace("$c/", "experiments/configs/paper/")
    for name in re.findall(r"(?:experiments|src|tests|notebooks)/[\w./-]*\w", text):
        if not name.startswith("experiments/data/") or name.endswith(".yaml"):  # else the user's own data
            assert (ROOT / name).exists() or name.endswith("/ROW.yaml"), f"{page.name}: {name} does not exist"


def test_the_api_reference_names_what_exists():
    for name in re.findall(r"^::: (\S+)", "".join(page.read_text() for page in SITE), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        path = ROOT / "src" / f"{name.replace('.', '/')}.py"
        assert path.is_file() or hasattr(import_module(module), attribute), f"{name} does not exist"


def test_every_page_is_in_the_navigation():
    navigation = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for page in SITE:
        assert f"'{page.relative_to(ROOT / 'docs')}'" in navigation
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"'notebooks/{notebook.name}'" in navigation
