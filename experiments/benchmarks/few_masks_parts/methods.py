"""The rows of the benchmark: how each method is built, and which test-time rows share its training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dasnet_lightning.tasks.config import RecipeConfig

from .data import Study
from .floors import Filled, GrabCut
from .learner import PLAIN, Extras, Learner
from .ours import OurRecipe, Ours
from .rivals import CropNet, MaskRCNNHead, SemanticRival

NO_BUDGET = "none"


@dataclass(frozen=True)
class Method:
    """One training, or none, and its rows.

    Attributes:
        build: builds the method for a data set.
        rows: title of each row, by name, and its refinement at test time.
        trained: whether it learns; a method that does not is measured once, without budget and seed.
        time: multiple of the training time of the other methods.
    """

    build: Callable[[Study], Learner]
    rows: Mapping[str, tuple[str, Extras]]
    trained: bool = True
    time: float = 1.0


def _single(
    name: str, title: str, build: Callable[[Study], Learner], trained: bool = True, time: float = 1.0
) -> dict[str, Method]:
    return {name: Method(build, {name: (title, PLAIN)}, trained, time)}


def _ours(name: str, title: str, recipe: OurRecipe) -> dict[str, Method]:
    return _single(name, title, lambda study: Ours(study, recipe))


def _mask_rcnn(name: str, title: str, channels: int, class_specific: bool) -> dict[str, Method]:
    return _single(name, title, lambda study: MaskRCNNHead(study, channels, class_specific))


def build_trained_crop(study: Study) -> Learner:
    """Build the crop with the jitter and the boundary weight of ours."""
    return CropNet(study, RecipeConfig.box_jitter, RecipeConfig.boundary_weight)


REFINED = {
    "zoom": ("ours, zoom", PLAIN),
    "zoom_flip": ("ours, zoom + flip", Extras(flip=True)),
    "zoom_filter": ("ours, zoom + guided filter", Extras(guided_filter=True)),
    "zoom_flip_filter": ("ours, zoom + flip + guided filter", Extras(flip=True, guided_filter=True)),
}

METHODS: dict[str, Method] = {
    **_single("rectangle", "filled rectangle", lambda study: Filled(study, "rectangle"), trained=False),
    **_single("ellipse", "filled ellipse", lambda study: Filled(study, "ellipse"), trained=False),
    **_single("grabcut", "GrabCut in the box", GrabCut, trained=False),
    **_single("fcn", "FCN head, stride 8", lambda study: SemanticRival(study, deeplab=False)),
    **_single("deeplab", "DeepLabV3 head, stride 16", lambda study: SemanticRival(study, deeplab=True)),
    **_mask_rcnn("maskrcnn_agnostic", "Mask R-CNN head, class-agnostic, 64 channels", 64, False),
    **_mask_rcnn("maskrcnn_specific", "Mask R-CNN head, class-specific, 64 channels", 64, True),
    **_mask_rcnn("maskrcnn_256", "Mask R-CNN head, class-specific, 256 channels", 256, True),
    **_single("crop", "crop at 128 pixels, plain", CropNet),
    **_single("crop_ours", "crop at 128 pixels, our training", build_trained_crop),
    **_single("crop_ours_long", "crop at 128 pixels, our training, 3 x the time", build_trained_crop, time=3.0),
    **_ours("light", "ours, light (image grid)", OurRecipe("light")),
    **_ours("paper", "ours, paper's decoder", OurRecipe("paper")),
    **_ours("zoom_plain", "ours, zoom, no jitter, no boundary weight", OurRecipe(jitter=0.0, boundary=0.0)),
    **_ours("zoom_no_attention", "ours, zoom without attention", OurRecipe(attention=False)),
    **_ours("zoom_no_prior", "ours, zoom without priors", OurRecipe(priors=False)),
    **_ours("zoom_no_jitter", "ours, zoom without jitter", OurRecipe(jitter=0.0)),
    **_ours("zoom_no_boundary", "ours, zoom without boundary weight", OurRecipe(boundary=0.0)),
    "zoom": Method(lambda study: Ours(study, OurRecipe()), REFINED),
    # Box losses and self-training get their rows here once the library has them:
    # zoom_box_losses, zoom_self_training, zoom_whole_recipe.
}

TITLES = {name: title for method in METHODS.values() for name, (title, _) in method.rows.items()}

# The whole benchmark, in an order that gives a useful table early: (methods, budgets, seeds).
LEADING = ("zoom", "crop_ours", "crop", "maskrcnn_agnostic", "light")
EVERY = (
    *("rectangle", "ellipse", "grabcut"),
    *LEADING,
    *(name for name, method in METHODS.items() if method.trained and name not in (*LEADING, "paper")),
)
PLAN = (
    (EVERY, ("5/class", "all"), (0,)),
    (EVERY, ("5/class",), (1, 2)),
    (LEADING, ("all", "1/class", "25/class", "5objects", "2/class", "10/class", "1objects", "25objects"), (0, 1, 2)),
)
