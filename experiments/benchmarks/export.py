"""onnxruntime against `Segmenter.segment`, from pixels to masks: `python experiments/benchmarks/export.py`.

Both sides get the same photograph-sized noise and the same given boxes, so that both decode the same number of masks; no
NMS runs. A side takes one thread, and both take turns in one process. `ratio` is our time divided by that of run.py.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import scatter_boxes, setting, time_interleaved, write_results

from dasnet_lightning.detectors.fold_batchnorm import fold_norms
from dasnet_lightning.inference.export import runner
from dasnet_lightning.inference.export.write import export
from dasnet_lightning.inference.segmenter import Segmenter
from dasnet_lightning.models.dasnet import build_dasnet
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.nn.heads import PositionSensitiveHead

PHOTOGRAPH = (375, 500)  # VOC's usual height and width


def build(detector: str, decoder: str, size: int) -> Segmenter:
    """An untrained network as `load` makes it ready."""
    torch.manual_seed(0)
    model = build_dasnet(21, detector, {"image_size": size}, decoder=decoder, head=PositionSensitiveHead).eval()
    fold_norms(model.detector)
    return Segmenter(model, [str(label) for label in range(21)], InstanceOptions())


def measure(args: argparse.Namespace, detector: str, decoder: str, folder: Path) -> list[dict[str, Any]]:
    """A line for each number of boxes."""
    segmenter = build(detector, decoder, args.size)
    model = runner.Model(export(segmenter, folder))
    image = np.random.default_rng(0).integers(0, 256, (*PHOTOGRAPH, 3), dtype=np.uint8)
    values = np.random.default_rng(0).random((1, 3, args.size, args.size), dtype=np.float32)
    lines = []
    for number in args.boxes:
        boxes = scatter_boxes(number, args.side, min(PHOTOGRAPH)).boxes.numpy()
        labels = [1] * number

        @torch.inference_mode()
        def encode() -> None:
            segmenter.model.detector.features(torch.from_numpy(values))

        runs = {
            "ours": partial(segmenter.segment, image, boxes, labels),
            "run.py": partial(model.segment, image, boxes, labels),
            "our features": encode,
            "image graph": partial(model.image_graph, {"image": values}),
        }
        spent = time_interleaved(runs, torch.device("cpu"), args.repetitions)
        lines.append(
            {"detector": detector, "decoder": decoder, "boxes": number}
            | {f"{name} ms": round(1e3 * seconds, 1) for name, seconds in spent.items()}
            | {"ratio": round(spent["ours"] / spent["run.py"], 2)}
        )
        print(json.dumps(lines[-1]), flush=True)
    return lines


def main() -> None:
    """Print a JSON line for each network and number of boxes; write export.json and export.md where --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detectors", nargs="+", default=["ssd320_mobilenet_v2"])
    parser.add_argument("--decoders", nargs="+", default=["zoom", "light"])
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--side", type=float, default=0.3, help="of the boxes, in images")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = one_thread.inter_op_num_threads = 1
    onnxruntime.InferenceSession = partial(onnxruntime.InferenceSession, sess_options=one_thread)
    about = setting(torch.device("cpu"), onnxruntime=onnxruntime.__version__, size=args.size, side=args.side)
    lines = []
    for detector in args.detectors:
        for decoder in args.decoders:
            with tempfile.TemporaryDirectory() as folder:
                lines += measure(args, detector, decoder, Path(folder))
    write_results(args.out, "export", about, lines)


if __name__ == "__main__":
    main()
