"""Draw README's picture: one validation image of a finished `dasnet demo` in panels.

uv run dasnet demo && uv run python experiments/readme_picture.py dasnet_demo --image 57 --out docs/images/demo.png
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from dasnet_lightning import MixedSupervisionDataModule, load
from dasnet_lightning.training.pictures import draw_row
from dasnet_lightning.visualization.text import side_by_side


def main() -> None:
    """Draw the panels of one image: detected boxes, masks by budget, ground truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--image", type=int, default=57, help="number of the validation image (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    results = json.loads((args.run / "results.json").read_text())
    data = MixedSupervisionDataModule(results["config"]["data"], image_size=128, num_workers=0)
    data.setup("validate")
    val_set = data.val_set()
    truth = val_set[(0, args.image)].target.truth
    if truth is None:
        raise SystemExit(f"image {args.image} has no masks, choose another one")
    segmenters = {item["budget"]: load(item["checkpoint"]) for item in results["budgets"]}
    picture = draw_row(segmenters, val_set.records[args.image], truth, results["config"]["task"] == "instance")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    panels = {picture.image_title: picture.image, **picture.panels}
    Image.fromarray(side_by_side(list(panels.values()), list(panels))).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
