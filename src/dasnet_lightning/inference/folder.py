"""Models as folders: safetensors, JSON and a model card, on disk or on the Hugging Face Hub.

A folder holds what inference needs and nothing of the training: config.json, model.safetensors and README.md. It has no
path of the machine that wrote it. Reading it runs no code.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from dasnet_lightning import __version__
from dasnet_lightning.errors import CheckpointError, ConfigError, DasnetError, one_line
from dasnet_lightning.storage.atomic import write_bytes, write_text
from dasnet_lightning.storage.reading import read_safetensors
from dasnet_lightning.tasks.checkpoint_info import KEY, describe, is_ours, read_info
from dasnet_lightning.tasks.checkpoints import without_weights
from dasnet_lightning.tasks.config import NetworkConfig

LIBRARY = "dasnet_lightning"
FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HUB = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?/?")
NEEDED = ("task", "num_classes", "class_names", "category_ids", "cells", "image_range", "inference", "network")


@dataclass(frozen=True)
class ModelCard:
    """What the README.md of a model folder tells its readers.

    Attributes:
        data: name of the data set that the model was trained on.
        budget: the masks that it was trained with, such as "5/class".
        figures: metrics by name, 0..1.
        license: the license of the weights, as the Hugging Face Hub spells it ("apache-2.0", "cc-by-4.0").
        notes: sentences for the reader.
    """

    data: str = ""
    budget: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    license: str = "unknown"
    notes: str = ""


def is_folder(source: str | Path) -> bool:
    """Return whether a model is a folder, or on the hub, rather than a checkpoint file."""
    return _is_on_hub(source) or Path(source).is_dir()


def describe_network(saved: Mapping[str, Any], network: NetworkConfig) -> dict[str, Any]:
    """Return the hyper-parameters that inference needs, as JSON holds them."""
    rest = {name: saved[name] for name in NEEDED if saved.get(name) is not None and name != "network"}
    options = without_weights(network.detector_options)
    return {**rest, "network": {**vars(network), "detector_options": options}, "card": dict(saved.get("card", {}))}


def write_folder(folder: Path, model: nn.Module, description: Mapping[str, Any], card: ModelCard | None) -> Path:
    """Write a model folder.

    Args:
        folder: the folder.
        model: the network.
        description: the `description` of its segmenter, with its present options.
        card: what the README.md says; None for what the model's source says.

    Returns:
        The folder.

    Raises:
        ConfigError: the description is incomplete, or the folder is a file.
    """
    if "network" not in description:
        raise ConfigError("only a segmenter that dasnet_lightning.load has made can be saved")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the model")
    hyper_parameters = {name: description[name] for name in NEEDED if description.get(name) is not None}
    if card is None:
        card = ModelCard(**description["card"]) if description["card"] else find_card(description["source"])
    weights = save({name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()})
    info = describe(hyper_parameters, model.detector.image_size)  # type: ignore[union-attr, arg-type]
    config = {
        "library_name": LIBRARY,
        "folder_format": FORMAT,
        KEY: info.to_dict(),
        "folded": description["folded"],
        "sha256": hashlib.sha256(weights).hexdigest(),
        "hyper_parameters": hyper_parameters,
        "card": asdict(card),
    }
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / CARD, write_card(card, hyper_parameters, info.image_size))
    write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return folder


def read_folder(source: str | Path) -> dict[str, Any]:
    """Read a model folder as a checkpoint's content, with the entry "folded" beside.

    Args:
        source: a folder, or "hf://owner/name" with "@revision" where wanted.

    Raises:
        CheckpointError: the folder is not ours, damaged, written by a newer version, or cannot be downloaded.
        ConfigError: the package for the hub is missing.
    """
    folder = download(str(source)) if _is_on_hub(source) else Path(source)
    config = _read_config(folder, source)
    content: dict[str, Any] = {
        KEY: config.get(KEY),
        "hyper_parameters": config.get("hyper_parameters"),
        "state_dict": {},
        "folded": config.get("folded"),
    }
    if not is_ours(content) or not isinstance(content[KEY], dict):
        raise CheckpointError(f"{source}: its {CONFIG} is damaged or was edited, it does not describe a network")
    read_info(content, source)
    path = folder / WEIGHTS
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != config.get("sha256"):
        raise CheckpointError(f"{source}: {WEIGHTS} is damaged or of another model, its checksum does not match")
    state = read_safetensors(path, "file of weights")
    hyper_parameters = {**config["hyper_parameters"], "card": config.get("card") or {}}
    named = {f"model.{name}": value for name, value in state.items()}
    return {**content, "hyper_parameters": hyper_parameters, "state_dict": named}


def _read_config(folder: Path, source: str | Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{source}: not a model folder of {LIBRARY}, it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read as JSON ({one_line(str(error))})") from error
    if not isinstance(config, dict) or config.get("library_name") != LIBRARY:
        raise CheckpointError(f"{source}: not a model folder of {LIBRARY}, its {CONFIG} is of another program")
    if config.get("folder_format") != FORMAT:
        found = config.get("folder_format")
        raise CheckpointError(f"{source}: has folder format {found}, this version reads {FORMAT}: update the library")
    return config


def _is_on_hub(source: str | Path) -> bool:
    return re.match(r"hf:/", str(source)) is not None


def download(source: str) -> Path:
    """Download a model folder from the hub into its cache, or find it there, and return the local folder."""
    match = HUB.fullmatch(source)
    if match is None:
        raise ConfigError(f"{source}: expected hf://owner/name or hf://owner/name@revision")
    try:
        hub = import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(f"{source}: needs huggingface_hub, install dasnet-lightning[hub]") from error
    try:
        patterns = [CONFIG, WEIGHTS, CARD]
        folder = hub.snapshot_download(match["repository"], revision=match["revision"], allow_patterns=patterns)
    except DasnetError:
        raise
    except Exception as error:  # the hub's, the network's and the disk's errors have no common class
        reason = one_line((str(error).splitlines() or [""])[0])
        raise CheckpointError(f"{source}: cannot be downloaded ({type(error).__name__}: {reason})") from error
    return Path(folder)


def find_card(source: str) -> ModelCard:
    """Return what the run folder around a checkpoint says about it; an empty card without a run folder."""
    checkpoint = Path(source)
    try:
        results = json.loads((checkpoint.parent.parent / "results.json").read_text(encoding="utf-8"))
        (budget,) = (
            item for item in results["budgets"] if Path(item["checkpoint"]).parent.name == checkpoint.parent.name
        )
        figures = {
            name: round(value, 4)
            for name, value in budget["metrics"].items()
            if name.count("/") == 1 and isinstance(value, float) and 0 <= value <= 1 and not math.isnan(value)
        }
        masks = f"{budget['budget']} ({budget['mask_objects']:,} masks in {budget['mask_images']:,} images)"
        return ModelCard(Path(results["config"]["data"]).name, masks, figures)
    except (OSError, ValueError, KeyError, TypeError):
        return ModelCard()


def write_card(card: ModelCard, hyper_parameters: Mapping[str, Any], size: tuple[int, int] | None) -> str:
    """Return the README.md of a model folder."""
    network, names = hyper_parameters["network"], hyper_parameters.get("class_names") or ()
    lines = [
        *("---", f"library_name: {LIBRARY}", f"license: {card.license}", "pipeline_tag: image-segmentation", "---", ""),
        f"# DASNet, {hyper_parameters['task']} segmentation",
        "",
        f"Detector `{network['detector']}`, decoder `{network['decoder']}`, input "
        f"{'x'.join(map(str, size or ()))} pixels (height x width), written by dasnet_lightning {__version__}.",
        "",
        "```python",
        "import dasnet_lightning",
        "",
        'segmentation = dasnet_lightning.load("FOLDER or hf://owner/name").segment("photo.jpg")',
        "```",
        "",
        f"* Training data: {one_line(card.data) or 'not stated'}",
        f"* Masks: {one_line(card.budget) or 'not stated'}",
        f"* Classes ({len(names[1:])}): {', '.join(one_line(name) for name in names[1:])}",
        f"* License of the weights: {'not stated' if card.license == 'unknown' else card.license}",
    ]
    if card.notes:
        lines += ["", card.notes]
    if card.figures:
        lines += ["", "| validation metric | value |", "|---|---:|"]
        lines += [f"| {one_line(name)} | {value:.4f} |" for name, value in card.figures.items()]
    return "\n".join(lines) + "\n"
