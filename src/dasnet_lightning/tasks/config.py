"""Arguments of the segmentation tasks, grouped by concern.

Checkpoints hold `NetworkConfig` and `RecipeConfig` as plain dicts among the hyper-parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dasnet_lightning.functional.attention import Rounding
from dasnet_lightning.metrics.coco_evaluators import Evaluator

Config = TypeVar("Config")


@dataclass(frozen=True)
class NetworkConfig:
    """Parts of the stage-two network. The head is not among them: each task has its own.

    Attributes:
        detector: registered name of the detector.
        detector_options: options of the detector's builder.
        decoder: registered name of the decoder, for example "light", "paper" or "zoom".
        decoder_options: options of the decoder's builder.
        rounding: "cover" attends to every feature cell that a box touches, "inside" is equation 1 of the paper.
        soft_attention: 0 attends by boxes alone, as the paper. Above 0, up to 1, a second decode follows, whose
            features are weighted by the foreground that the first one found. Both decodes are trained.
    """

    detector: str = "ssd320_vgg16"
    detector_options: dict[str, Any] | None = None
    decoder: str = "light"
    decoder_options: dict[str, Any] | None = None
    rounding: Rounding = "cover"
    soft_attention: float = 0.0


@dataclass(frozen=True)
class RecipeConfig:
    """Starting weights of a stage-two training, and whether the detector trains too.

    Attributes:
        detector_checkpoint: checkpoint of stage one, read when training starts. The detector's pretrained backbone is
            then not needed.
        initial_checkpoint: checkpoint of the same task to start from, read when training starts.
        joint: also train the detector, on its own losses and on the gradient that reaches it through the attention.
            Its rate is `optimizer.detector_rate` times the decoder's, and its box AP is validated too. The paper
            (section 1) reports that this is possible and does not help.
        box_loss_weight: weight of the detector's losses in joint training.
        box_jitter: a decoder of boxes ("zoom") is trained on boxes half of which are not exact. Each of their sides moves
            by up to this share of the box.
        boundary_weight: added weight of the cells near the boundary of an object in the loss of a decoder of boxes.
    """

    detector_checkpoint: str | None = None
    initial_checkpoint: str | None = None
    joint: bool = False
    box_loss_weight: float = 1.0
    box_jitter: float = 0.15
    boundary_weight: float = 2.0


@dataclass(frozen=True)
class EvaluationConfig:
    """How this machine evaluates. These are not hyper-parameters, and checkpoints do not hold them.

    Attributes:
        coco_evaluator: program that computes COCO's AP; all give the same values (see metrics.coco_evaluators).
        feature_cache: folder that keeps the frozen detector's features of the validation images; None computes them
            in every validation. Not allowed in joint training.
        feature_cache_gb: maximum size of that folder, in units of 1e9 bytes.
    """

    coco_evaluator: Evaluator = "built-in"
    feature_cache: str | None = None
    feature_cache_gb: float = 10.0


def restore_options(config_class: type[Config], options: Config | Mapping[str, Any] | None) -> Config:
    """Return options as an instance of their class.

    Args:
        config_class: the dataclass of the options.
        options: an instance, a mapping as checkpoints hold it, or None for the defaults.
    """
    if options is None:
        return config_class()
    return config_class(**options) if isinstance(options, Mapping) else options
