"""Sweep files: the points of a grid and of a random search, the agent's command, and W&B's own schema."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from dasnet_lightning.cli.main import COMMANDS
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.training.config import RunConfig, TrainerSettings
from dasnet_lightning.training.wandb_sweep import read_command, read_sweep

SWEEPS = sorted((Path(__file__).resolve().parents[2] / "experiments" / "sweeps").glob("*.yaml"))


def write(path: Path, **content) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_grid_has_all_combinations_in_the_order_of_the_file(tmp_path):
    path = write(
        tmp_path / "grid.yaml",
        method="grid",
        parameters={"mask_budget": {"values": ["1/class", "all"]}, "split_seed": {"min": 3, "max": 4}},
    )
    assert read_sweep(path) == [
        {"mask_budget": "1/class", "split_seed": 3},
        {"mask_budget": "1/class", "split_seed": 4},
        {"mask_budget": "all", "split_seed": 3},
        {"mask_budget": "all", "split_seed": 4},
    ]


def test_run_cap_ends_a_grid(tmp_path):
    path = write(tmp_path / "g.yaml", method="grid", run_cap=2, parameters={"steps": {"values": [1, 2, 3]}})
    assert read_sweep(path) == [{"steps": 1}, {"steps": 2}]


def test_a_random_search_draws_the_same_points_for_a_seed_and_stays_in_its_bounds(tmp_path):
    path = write(
        tmp_path / "random.yaml",
        method="random",
        run_cap=200,
        parameters={
            "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
            "box_jitter": {"min": 0.0, "max": 0.5},
            "steps": {"min": 10, "max": 12},
            "batch_size": {"distribution": "q_uniform", "min": 8, "max": 32, "q": 8},
            "decoder": {"values": ["zoom", "light"], "probabilities": [0.9, 0.1]},
            "seed": {"value": 7},
        },
    )
    points = read_sweep(path)
    assert points == read_sweep(path)
    assert points != read_sweep(path, seed=1)
    assert len(points) == 200
    assert all(1e-4 <= point["lr"] <= 1e-2 and 0 <= point["box_jitter"] <= 0.5 for point in points)
    assert {point["steps"] for point in points} == {10, 11, 12}
    assert {point["batch_size"] for point in points} == {8, 16, 24, 32}
    assert sum(point["decoder"] == "zoom" for point in points) > 150
    assert {point["seed"] for point in points} == {7}
    middle = sorted(math.log10(point["lr"]) for point in points)[100]
    assert -3.4 < middle < -2.6  # uniform in the exponent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "bayes", "parameters": {"lr": {"value": 1}}}, "method is 'bayes', expected grid or random"),
        ({"method": "random", "parameters": {"lr": {"value": 1}}}, "set run_cap: N"),
        ({"method": "grid"}, "parameters is None, expected a mapping"),
        ({"method": "grid", "parameters": {"lr": 3}}, "parameter 'lr' is 3, expected value, values"),
        ({"method": "grid", "parameters": {"lr": {"min": 0.1, "max": 0.2}}}, "expected value or values for a grid"),
        ({"method": "grid", "parameters": {"a": {"parameters": {"b": {"value": 1}}}}}, "is nested.*write 'a.b'"),
        ({"method": "grid", "run_cap": 0, "parameters": {"a": {"value": 1}}}, "run_cap is 0"),
        (
            {"method": "random", "run_cap": 1, "parameters": {"a": {"distribution": "beta"}}},
            "has distribution 'beta', expected uniform",
        ),
        ({"method": "random", "run_cap": 1, "parameters": {"a": {"min": 0.5}}}, "'a' has max None, expected a number"),
    ],
)
def test_what_cannot_be_run_locally_is_refused_with_the_name_of_the_file(tmp_path, content, message):
    path = write(tmp_path / "sweep.yaml", **content)
    with pytest.raises(ConfigError, match=rf"sweep\.yaml: .*{message}"):
        read_sweep(path)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read as a sweep file"):
        read_sweep(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"list\.yaml: expected a mapping"):
        read_sweep(tmp_path / "list.yaml")


@pytest.mark.parametrize("macro", ["args", "args_no_boolean_flags", "args_no_hyphens", "args_no_equals", "args_json"])
def test_the_command_is_the_one_of_wandb_agent(tmp_path, macro):
    point = {"mask_budget": "5/class", "allow_missing": True, "accept_changes": False, "lr": 0.001}
    command = ["dasnet", "train", "data/pets", "${" + macro + "}", "--logger", "wandb"]
    path = write(
        tmp_path / "s.yaml",
        method="grid",
        parameters={name: {"value": value} for name, value in point.items()},
        command=command,
    )
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    expected = [*command[:3], *arguments[macro], *command[4:]]
    assert read_command(path, read_sweep(path)[0]) == expected


def test_a_macro_inside_an_item_is_refused(tmp_path):
    content = {"method": "grid", "parameters": {"a": {"value": 1}}, "command": ["dasnet", "train ${args}"]}
    with pytest.raises(ConfigError, match=r"command item 'train \$\{args\}', expected one of"):
        read_command(write(tmp_path / "s.yaml", **content), {"a": 1})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_shipped_files_call_the_program_with_options_that_it_has(path):
    sweep, points = yaml.safe_load(path.read_text()), read_sweep(path)
    assert len({json.dumps(point) for point in points}) == len(points) > 1
    known = set(RunConfig.__dataclass_fields__) | set(TrainerSettings.__dataclass_fields__) | {"mask_budget"}
    assert set(points[0]) <= known
    command = create_sweep_command(sweep["command"])
    assert command[0] == "dasnet"
    assert command[1] in COMMANDS
    assert not [item for item in command if "${" in item and not (item.startswith("${") and item.endswith("}"))]
    assert sweep["metric"]["name"].startswith("val/")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_the_shipped_files_follow_the_schema_of_wandb(path):
    jsonschema = pytest.importorskip("jsonschema")
    package = find_spec("sweeps")  # W&B's own package; its code asks for an older numpy, its schema does not
    if package is None or package.origin is None:
        pytest.skip("needs W&B's schema: python -m pip install --no-deps sweeps")
    schema = json.loads((Path(package.origin).parent / "config" / "schema.json").read_text())
    content = yaml.safe_load(path.read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"parameters": {"lr": {"valuess": [1]}}}, schema)
