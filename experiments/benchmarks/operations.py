"""How many parameters and operations each part of a model has: `python experiments/benchmarks/operations.py`.

Counted on meta tensors, so nothing is computed and no memory is taken. A GMAC is 1e9 multiply-adds of convolutions and
matrix products. The detector (encoder and box heads) runs once for an image, decoder and score layer for each region.
"""

import argparse
import json
from typing import Any

import torch
from harness import as_markdown, gmac
from torch import nn

from dasnet_lightning.models.dasnet import build_dasnet

MODELS = (("ssd320_vgg16", "paper"), ("ssd320_mobilenet_v2", "light"), ("ssd320_mobilenet_v2", "paper"))
INSTANCE_MAPS = 98  # 2 * 7 * 7 position-sensitive maps


def row(model: str, decoder: str, part: str, module: nn.Module, cost: float) -> dict[str, Any]:
    """One line of the table."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {
        "detector": model,
        "decoder": decoder,
        "part": part,
        "parameters_m": round(parameters / 1e6, 3),
        "gmac": round(cost, 3),
    }


def count(detector: str, decoder: str, size: int, num_classes: int) -> list[dict[str, Any]]:
    """The rows of one model for square images of `size` pixels."""
    with torch.device("meta"):
        model = build_dasnet(num_classes, detector, decoder=decoder).eval()
        images = torch.rand(1, 3, size, size)
        instance_score = nn.Conv2d(model.decoder.out_channels, INSTANCE_MAPS, 3, padding=1)
    ssd = model.detector.detector
    encoder_cost, pyramid = gmac(ssd.features, images)
    heads_cost, _ = gmac(ssd.predict, pyramid)
    decoder_cost, features = gmac(model.decoder, pyramid)
    parts = [
        ("encoder and heads", ssd, encoder_cost + heads_cost),
        ("decoder", model.decoder, decoder_cost),
        ("score layer, 2 channels", model.head, gmac(model.head, features)[0]),
        (f"score layer, {INSTANCE_MAPS} channels", instance_score, gmac(instance_score, features)[0]),
    ]
    return [row(detector, decoder, *part) for part in parts]


def main() -> None:
    """Print one JSON line for each part, then all of them as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--num-classes", type=int, default=21)
    args = parser.parse_args()
    rows = [line for model in MODELS for line in count(*model, args.size, args.num_classes)]
    for line in rows:
        print(json.dumps(line))
    print("\n" + as_markdown(rows))


if __name__ == "__main__":
    main()
