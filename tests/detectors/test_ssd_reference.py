"""SSD's loss, detections and anchors compared with the published rules in plain Python (paper section 6)."""

from math import exp, log, sqrt

import pytest
import torch
from torch import nn

from dasnet_lightning.detectors import build_detector
from dasnet_lightning.detectors.ssd.anchors import AnchorLayout, make_anchors, ssd_shapes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.types import Pyramid, Target

CLASSES, SIZE, VARIANCES = 4, (64, 64), (0.1, 0.1, 0.2, 0.2)


class Given(nn.Module):
    """Returns two given levels."""

    strides: tuple[int, ...] = (8, 16)
    out_channels: tuple[int, ...] = (32, 32)

    def forward(self, images):
        raise NotImplementedError


def make_detector(**options) -> SSD:
    """Build an SSD with four anchors at each of 8 x 8 and 4 x 4 cells, whose heads pass the levels through."""
    layout = AnchorLayout(ssd_shapes((0.2, 0.45, 0.7), [(2.0,), (2.0,)]))
    heads, normal = [nn.Identity(), nn.Identity()], ((0.0,) * 3, (1.0,) * 3)
    return SSD(Given(), heads, layout, (0, 1), CLASSES, SIZE, *normal, **options)


def random_pyramid(generator: torch.Generator, images: int, scale: float) -> Pyramid:
    levels = tuple(torch.randn(images, 4 * (CLASSES + 4), n, n, generator=generator) * scale for n in (8, 4))
    return Pyramid(levels=levels, strides=Given.strides, size=SIZE)


def outputs(pyramid: Pyramid, image: int) -> list[tuple[list[float], list[float]]]:
    """Return class logits and offsets of each anchor, ordered by level, row, column and shape."""
    rows = []
    for level in pyramid.levels:
        for y in range(level.shape[2]):
            for x in range(level.shape[3]):
                cell = level[image, :, y, x].tolist()
                for start in range(0, len(cell), CLASSES + 4):
                    rows.append((cell[start : start + CLASSES], cell[start + CLASSES : start + CLASSES + 4]))
    return rows


def boxes_of_cells() -> list[list[float]]:
    boxes = []
    for cells, scale, following in ((8, 0.2, 0.45), (4, 0.45, 0.7)):
        sizes = [(scale, scale), (sqrt(scale * following),) * 2]
        sizes += [(scale * sqrt(2), scale / sqrt(2)), (scale / sqrt(2), scale * sqrt(2))]
        for y in range(cells):
            for x in range(cells):
                center = ((x + 0.5) / cells * 64, (y + 0.5) / cells * 64)
                boxes += [corners(*center, 64 * width, 64 * height) for width, height in sizes]
    return boxes


def corners(x: float, y: float, width: float, height: float) -> list[float]:
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def center_form(box: list[float]) -> tuple[float, float, float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def softmax(logits: list[float]) -> list[float]:
    powers = [exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def decode(offsets: list[float], anchor: list[float]) -> list[float]:
    x, y, width, height = center_form(anchor)
    dx, dy, dw, dh = (offset * variance for offset, variance in zip(offsets, VARIANCES, strict=True))
    return corners(x + dx * width, y + dy * height, width * exp(dw), height * exp(dh))


def encode(box: list[float], anchor: list[float]) -> list[float]:
    (x, y, width, height), (ax, ay, aw, ah) = center_form(box), center_form(anchor)
    offsets = ((x - ax) / aw, (y - ay) / ah, log(width / aw), log(height / ah))
    return [offset / variance for offset, variance in zip(offsets, VARIANCES, strict=True)]


def slow_detect(rows, threshold: float, nms: float, top_k: int, keep: int) -> list[tuple[float, int, list[float]]]:
    """Apply greedy NMS to the `top_k` best anchors of each class and keep the `keep` best of all classes."""
    anchors, kept = boxes_of_cells(), []
    for label in range(1, CLASSES):
        scored = sorted(((softmax(logits)[label], a) for a, (logits, _) in enumerate(rows)), reverse=True)[:top_k]
        chosen: list[list[float]] = []
        for score, a in scored:
            box = [min(max(edge, 0.0), 64.0) for edge in decode(rows[a][1], anchors[a])]
            if min(center_form(box)[2:]) <= 0.01:  # outside the image
                continue
            if score > threshold and all(overlap(box, other) <= nms for other in chosen):
                chosen.append(box)
                kept.append((score, label, box))
    return sorted(kept, key=lambda entry: -entry[0])[:keep]


def slow_losses(pyramid: Pyramid, targets: list[Target]) -> tuple[float, float]:
    """Compute the softmax loss of positives and three negatives each, and smooth L1, divided by the positives."""
    anchors, classification, location, matched = boxes_of_cells(), 0.0, 0.0, 0
    for image, target in enumerate(targets):
        boxes, labels, rows = target.boxes.tolist(), target.labels.tolist(), outputs(pyramid, image)
        pairs = sorted(
            ((overlap(box, anchor), i, a) for i, box in enumerate(boxes) for a, anchor in enumerate(anchors)),
            key=lambda pair: -pair[0],
        )
        owner: dict[int, int] = {}
        for iou, i, a in pairs:  # every object gets the best anchor that is left
            if iou > 0 and a not in owner and i not in owner.values():
                owner[a] = i
        for iou, i, a in pairs:  # and every other anchor the best object that it overlaps by half
            if iou > 0.5 and a not in owner:
                owner[a] = i
        costs = {a: -log(softmax(logits)[labels[owner[a]] if a in owner else 0]) for a, (logits, _) in enumerate(rows)}
        hard = sorted((cost for a, cost in costs.items() if a not in owner), reverse=True)[: 3 * len(owner)]
        classification += sum(hard) + sum(costs[a] for a in owner)
        for a, i in owner.items():
            for given, wanted in zip(rows[a][1], encode(boxes[i], anchors[a]), strict=True):
                error = abs(given - wanted)
                location += 0.5 * error**2 if error < 1 else error - 0.5
        matched += len(owner)
    return classification / matched, location / matched


def random_target(generator: torch.Generator, number: int) -> Target:
    corner = torch.rand(number, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 6 + torch.rand(number, 2, generator=generator) * 18], dim=1)
    nothing = torch.zeros(number, dtype=torch.bool)
    labels = torch.randint(1, CLASSES, (number,), generator=generator)
    return Target(boxes=boxes, labels=labels, has_mask=nothing, ignore=nothing)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_written_out_ones(seed):
    generator = torch.Generator().manual_seed(seed)
    pyramid = random_pyramid(generator, 3, 1.5)
    targets = [random_target(generator, number) for number in (1, 3, 6)]
    losses = make_detector().losses(pyramid, targets)
    expected = slow_losses(pyramid, targets)
    assert (float(losses["classification"]), float(losses["box"])) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"detections_per_image": 20}),
        (2, {"score_threshold": 0.4, "nms_threshold": 0.2}),
        (3, {"top_k": 9}),
    ],
)
def test_detections_equal_the_written_out_ones(seed, options):
    pyramid = random_pyramid(torch.Generator().manual_seed(seed), 2, 2.0)
    chosen = {"score_threshold": 0.01, "nms_threshold": 0.45, "top_k": 400, "detections_per_image": 200} | options
    for image, found in enumerate(make_detector(**options).detect(pyramid)):
        expected = slow_detect(outputs(pyramid, image), *chosen.values())
        assert 10 < len(expected) < 3 * len(boxes_of_cells())
        assert found.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(found.boxes, torch.tensor([box for _, _, box in expected]), rtol=1e-4, atol=1e-3)


def test_default_boxes_at_320_are_those_of_the_published_layers():
    """Compute the boxes of Caffe's layers at every cell: sizes in pixels, then each ratio wide and tall."""
    layers = [  # cells, step, smallest size, largest size, ratios
        (40, 8, 32.0, 64.0, (2,)),
        (20, 16, 64.0, 118.4, (2, 3)),
        (10, 32, 118.4, 172.8, (2, 3)),
        (5, 64, 172.8, 227.2, (2, 3)),
        (3, 100, 227.2, 281.6, (2,)),
        (1, 320, 281.6, 336.0, (2,)),
    ]
    expected, per_cell = [], []
    for cells, step, smallest, largest, ratios in layers:
        sizes = [(smallest, smallest), (sqrt(smallest * largest),) * 2]
        for ratio in ratios:
            wide = (smallest * sqrt(ratio), smallest / sqrt(ratio))
            sizes += [wide, wide[::-1]]
        per_cell.append(len(sizes))
        for y in range(cells):
            for x in range(cells):
                expected += [corners((x + 0.5) * step, (y + 0.5) * step, *size) for size in sizes]
    assert per_cell == [4, 6, 6, 6, 4, 4]
    with torch.device("meta"):  # the layout alone: no weights are made
        layout = build_detector("ssd320_vgg16", 21).anchors
    shapes = tuple((cells, cells) for cells, *_ in layers)
    ours = make_anchors(layout, (320, 320), shapes, torch.device("cpu"))
    assert len(ours) == len(expected) == 9590
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=1e-3)
