"""Which networks can be exported, and why others cannot; docs/export.md shows the same table."""

from dasnet_lightning.detectors.base import Detector
from dasnet_lightning.detectors.given_boxes import GivenBoxes
from dasnet_lightning.detectors.ssd.ssd import SSD
from dasnet_lightning.errors import ConfigError
from dasnet_lightning.inference.export.graphs import unwrap
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.models.instance import InstanceOptions
from dasnet_lightning.models.semantic import SemanticOptions

TARGETS = ("onnx", "torch-export")
DECODERS = ("zoom", "light", "paper")
DETECTED, GIVEN = "boxes detected or given", "boxes given"
TWO_STAGES = "its second stage reads a number of proposals that depends on the image"
OTHER_SELECTION = "its selection of boxes is that of torchvision, which the runner does not have"
QUERIES = "its network comes from another package, whose graph this library does not test"

DETECTORS: dict[str, str] = {
    "ssd300_mobilenet_v2": DETECTED,
    "ssd320_mobilenet_v2": DETECTED,
    "ssdlite320_mobilenet_v3_large": DETECTED,
    "ssd300_vgg16": DETECTED,
    "ssd320_vgg16": DETECTED,
    "ssd": DETECTED,
    "ssd_tiny": DETECTED,
    "boxes": GIVEN,
    "retinanet_resnet50_fpn_v2": OTHER_SELECTION,
    "fcos_resnet50_fpn": OTHER_SELECTION,
    "faster_rcnn_resnet50_fpn": TWO_STAGES,
    "faster_rcnn_resnet50_fpn_v2": TWO_STAGES,
    "faster_rcnn_mobilenet_v3_large_320_fpn": TWO_STAGES,
    "faster_rcnn_mobilenet_v2_fpn": TWO_STAGES,
    "transformers": QUERIES,
}


def support_of(detector: str, decoder: str, target: str) -> str:
    """Return what an export of a registered detector and decoder can do, or why there is none.

    Args:
        detector: registered name of the detector.
        decoder: registered name of the decoder.
        target: a name in TARGETS. Both targets support the same networks.

    Raises:
        KeyError: a name is unknown.
    """
    if decoder not in DECODERS or target not in TARGETS:
        raise KeyError((decoder, target))
    return DETECTORS[detector]


def support_table() -> str:
    """Return the support of each detector, decoder and target as a Markdown table."""
    columns = [(decoder, target) for decoder in DECODERS for target in TARGETS]
    lines = [f"| detector | {' | '.join(f'{decoder}, {target}' for decoder, target in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name in DETECTORS:
        cells = [support_of(name, *column) for column in columns]
        cells = ["yes" if cell == DETECTED else cell if cell == GIVEN else "refused" for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def check_support(
    source: object, model: DASNet, name: str, options: SemanticOptions | InstanceOptions, target: str
) -> None:
    """Check that a network and its options of inference can be exported.

    Args:
        source: the checkpoint, for messages.
        model: the network.
        name: registered name of its detector.
        options: its options of inference.
        target: what to export to.

    Raises:
        ConfigError: names the part that cannot be exported, and why.
    """
    if target not in TARGETS:
        raise ConfigError(f"--to {target} is unknown, expected one of: {', '.join(TARGETS)}")
    detector: Detector = unwrap(model.detector)
    if not isinstance(detector, SSD | GivenBoxes):
        reason = DETECTORS.get(name, OTHER_SELECTION)
        raise ConfigError(
            f"{source}: detector '{name}' cannot be exported, {reason}; train one of: "
            f"{', '.join(known for known, support in DETECTORS.items() if support in (DETECTED, GIVEN))}"
        )
    if model.soft_attention:
        raise ConfigError(f"{source}: soft_attention decodes twice and cannot be exported, train with soft_attention 0")
    for option in ("flip", "guided_filter"):
        if getattr(options, option):
            raise ConfigError(
                f"{source}: the option {option} cannot be exported, set --inference-option {option}=false"
            )
