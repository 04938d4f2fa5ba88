"""`dasnet_lightning.export`: writes a trained network as two graphs, their description, and a runner."""

import copy
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dasnet_lightning import __version__
from dasnet_lightning.detectors.ssd.ssd import MIN_SIDE, SSD
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.export import runner
from dasnet_lightning.inference.export.graphs import BoxMaskGraph, ImageGraph, build_graphs
from dasnet_lightning.inference.export.support import check_support
from dasnet_lightning.inference.segmenter import InferenceOptions, Segmenter, load
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.nn.decoder import BoxDecoder
from dasnet_lightning.nn.heads import PositionSensitiveHead
from dasnet_lightning.storage.atomic import write_text

FORMAT = 1
OPSET = 18  # onnxruntime's CUDA kernels lack Resize-19 and GridSample-20
SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript"), "torch-export": ()}
TRACED_BOXES, TRACED_REGIONS = 3, 2  # numbers in the example inputs; the graphs take any number


@torch.no_grad()
def export(
    checkpoint: str | Path | Segmenter, out: str | Path, target: str = "onnx", options: InferenceOptions | None = None
) -> Path:
    """Export a checkpoint of stage two for a runtime without this library.

    The folder then holds the graph of the image (image.onnx), the graph of the masks (masks.onnx), model.json (classes,
    sizes, normalization, thresholds, versions) and run.py, which needs numpy, Pillow and onnxruntime.

    Args:
        checkpoint: a checkpoint of SemanticTask or InstanceTask, a folder of `Segmenter.save`, or what `load` returned.
        out: the folder; its files of an earlier export are replaced.
        target: "onnx", or "torch-export" for the files of `torch.export.save`.
        options: thresholds and limits that run.py uses; default: those of the checkpoint.

    Returns:
        The folder.

    Raises:
        ConfigError: the network or its options cannot be exported, the target is unknown, or a package is missing.
        CheckpointError: see `load`.
    """
    segmenter = checkpoint if isinstance(checkpoint, Segmenter) else load(checkpoint)
    folder = Path(out)
    _check(segmenter, options or segmenter.options, target, folder)
    # a copy: the segmenter may go on segmenting, on its device and in its memory format
    model = copy.deepcopy(segmenter.model).cpu().to(memory_format=torch.contiguous_format)
    image_graph, mask_graph = build_graphs(model)
    image = torch.zeros(1, 3, *segmenter.image_size)
    levels = [
        value.contiguous()
        for name, value in zip(image_graph.outputs, image_graph(image), strict=True)
        if name.startswith(("level", "switches"))
    ]
    names: dict[str, dict[str, list[str]]] = {"image": {"inputs": ["image"], "outputs": image_graph.outputs}}
    inputs, shapes = _mask_inputs(mask_graph, segmenter.image_size)
    names["masks"] = {"inputs": [*inputs, *image_graph.outputs[: len(levels)]], "outputs": ["masks"]}
    free: tuple[Any, ...] = (*shapes, tuple({} for _ in levels))
    _write_graph(folder / f"image{SUFFIX[target]}", image_graph, (image,), None, names["image"], target)
    _write_graph(
        folder / f"masks{SUFFIX[target]}", mask_graph, (*inputs.values(), *levels), free, names["masks"], target
    )
    about = describe_export(segmenter, image_graph, options or segmenter.options, target) | {"names": names}
    write_text(folder / "model.json", json.dumps(about, indent=1) + "\n")
    shutil.copyfile(runner.__file__, folder / "run.py")
    return folder


def _check(segmenter: Segmenter, options: InferenceOptions, target: str, folder: Path) -> None:
    """Check that the export is possible, and make its folder. Raises ConfigError if it is not."""
    source = segmenter.description.get("source", "the network")
    check_support(source, segmenter.model, _name(segmenter, "detector"), options, target)
    missing = [package for package in NEEDED[target] if find_spec(package) is None]
    if missing:
        raise ConfigError(f"--to {target} needs {' and '.join(missing)}: install dasnet-lightning[export]")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the export")
    folder.mkdir(parents=True, exist_ok=True)


def describe_export(
    segmenter: Segmenter, image_graph: ImageGraph, options: InferenceOptions, target: str
) -> dict[str, Any]:
    """Return the content of model.json, but for the names of the graphs' inputs and outputs."""
    model, detector = segmenter.model, image_graph.detector
    by_box = isinstance(model.decoder, BoxDecoder)
    masks: dict[str, Any] = {"kind": "grids" if by_box else "maps"}
    if isinstance(model.decoder, BoxDecoder):
        masks["margin"] = model.decoder.margin
        masks["quality"] = "the expected IoU (soft dice confidence) multiplies the score"
    if isinstance(model.head, PositionSensitiveHead):
        masks["cells"] = model.head.cells
        masks["quality"] = "the instance score of the maps multiplies the score"
    inference = vars(options)
    if by_box and isinstance(options, InstanceOptions):
        inference = inference | {"grouping": "instance"}
    return {
        "format": FORMAT,
        "target": target,
        "versions": _versions(target),
        "task": "instance" if isinstance(options, InstanceOptions) else "semantic",
        "detector": _name(segmenter, "detector"),
        "decoder": _name(segmenter, "decoder"),
        "classes": list(segmenter.class_names),
        "category_ids": None if segmenter.category_ids is None else list(segmenter.category_ids),
        "graphs": [f"image{SUFFIX[target]}", f"masks{SUFFIX[target]}"],
        "input": {
            "size": list(segmenter.image_size),
            "values": "RGB, 0..1; the graph normalizes them",
            "mean": _floats(detector.mean),
            "std": _floats(detector.std),
            "resize": "average where the image shrinks, interpolate bilinearly where it grows",
        },
        "detection": _detection(detector),
        "inference": inference,
        "masks": masks,
    }


def _name(segmenter: Segmenter, part: str) -> str:
    return str(segmenter.description.get("network", {}).get(part, "of your own"))


def _detection(detector: nn.Module) -> dict[str, Any] | None:
    """Return the settings of the selection of boxes, None for a detector that detects nothing."""
    if not isinstance(detector, SSD):
        return None
    names = ("score_threshold", "nms_threshold", "top_k", "detections_per_image")
    return {name: getattr(detector, name) for name in names} | {"min_side": MIN_SIDE}


def _floats(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values.flatten()]


def _versions(target: str) -> dict[str, str]:
    packages = {"onnx": version("onnx"), "opset": str(OPSET)} if target == "onnx" else {}
    return {"dasnet_lightning": __version__, "torch": torch.__version__, **packages}


def _mask_inputs(graph: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Tensor], tuple[dict[int, Any], ...]]:
    """Return example inputs of the mask graph that are not levels, and which of their dimensions are free."""
    boxes = torch.tensor([[0.0, 0.0, size[1] / 2, size[0] / 2]]).repeat(TRACED_BOXES, 1)
    number, regions = torch.export.Dim("n", min=0), torch.export.Dim("r", min=0)
    if isinstance(graph, BoxMaskGraph):
        return {"boxes": boxes}, ({0: number},)
    return {"boxes": boxes, "members": torch.ones(TRACED_REGIONS, TRACED_BOXES)}, ({0: number}, {0: regions, 1: number})


def _write_graph(
    path: Path,
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: tuple[Any, ...] | None,
    names: Mapping[str, list[str]],
    target: str,
) -> None:
    """Trace a graph and write it.

    Args:
        path: the file.
        graph: the module.
        inputs: example inputs.
        shapes: the free dimensions of the inputs, as for `torch.export.export`; None if there are none.
        names: names of the inputs and outputs.
        target: a target.
    """
    with _quiet():
        program = torch.export.export(graph, inputs, dynamic_shapes=shapes)
        if target == "torch-export":
            torch.export.save(program, path)
            return
        onnx_program = torch.onnx.export(
            program,
            input_names=names["inputs"],
            output_names=names["outputs"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert onnx_program is not None
    onnx_program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, which warn about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
