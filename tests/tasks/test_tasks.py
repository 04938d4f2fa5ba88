import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.detectors import DETECTORS
from dasnet_lightning.errors import CheckpointError, ConfigError
from dasnet_lightning.tasks.checkpoints import read_checkpoint
from dasnet_lightning.tasks.detection import DetectionTask
from dasnet_lightning.tasks.optimization import OptimizerConfig
from dasnet_lightning.tasks.semantic import SemanticTask
from toy import ToyDetector, make_batch, make_target

BOXES = [[2.0, 2, 14, 14], [16, 16, 30, 28]]
TARGETS = {
    "all masks": make_target(BOXES, [1, 2]),
    "one mask": make_target(BOXES, [1, 2], has_mask=[True, False]),
    "no mask": make_target(BOXES, [1, 2], has_mask=[False, False]),
    "no object": make_target([], []),
}
NAMES = ("background", "a", "b")


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    def build(num_classes: int, backbone_weights: None = None) -> ToyDetector:
        return ToyDetector(num_classes)

    monkeypatch.setitem(DETECTORS._entries, "toy", build)


def semantic_task(**options) -> SemanticTask:
    torch.manual_seed(0)
    adam = OptimizerConfig("adamw", lr=3e-3, schedule="constant", double_bias=False)
    return SemanticTask(3, NAMES, detector="toy", optimizer=adam, **options)


def trainer(tmp_path, steps: int) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        plugins=[AtomicCheckpointIO()],
    )


def loader(batches):
    return DataLoader(batches, batch_size=None)


def test_the_frozen_detector_stays_bit_identical_and_the_decoder_learns(tmp_path):
    task = semantic_task()
    task.eval()  # a task put into evaluation before fit still trains its decoder
    before = {key: value.clone() for key, value in task.model.detector.state_dict().items()}
    decoder = {key: value.clone() for key, value in task.model.decoder.state_dict().items()}
    batches = [make_batch([TARGETS["all masks"], TARGETS["one mask"], TARGETS["no object"]], seed=s) for s in range(4)]
    fitter = trainer(tmp_path, 4)
    fitter.fit(task, loader(batches), loader(batches[:1]))
    after = task.model.detector.state_dict()
    assert any("running_mean" in key for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(decoder[key], value) for key, value in task.model.decoder.state_dict().items())
    assert task.model.decoder.training
    assert not task.model.detector.frozen.module.training
    metrics = fitter.callback_metrics
    assert {"val/miou_ground_truth_boxes", "val/miou_detected_boxes", "val/iou_detected_boxes/a"} <= set(metrics)


@pytest.mark.parametrize("case", TARGETS)
def test_every_trainable_parameter_gets_a_gradient(case):
    task = semantic_task()
    task.log = task.log_dict = lambda *args, **options: None
    task.training_step(make_batch([TARGETS[case]] * 2), 0).backward()
    trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in trainable]
    assert len(gradients) > 10
    assert all(gradient is not None for gradient in gradients)
    learns = any(bool(gradient.any()) for gradient in gradients)
    assert learns == (case in ("all masks", "one mask"))


def test_an_object_without_a_mask_gives_no_mask_gradient():
    """The same picture with and without a second, mask-less object of another class: the same gradients."""
    gradients = []
    alone = make_target(BOXES[:1], [1])
    for target in (alone, TARGETS["one mask"]):
        task = semantic_task()
        task.log = task.log_dict = lambda *args, **options: None
        task.training_step(make_batch([target]), 0).backward()
        gradients.append([p.grad.clone() for p in task.parameters() if p.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_few_shapes_can_be_learned_by_heart(tmp_path):
    target = make_target([[4.0, 4, 28, 28]], [1])
    target.masks[0, :, 16:] = False  # the left half of the box
    target.truth.semantic[:, 16:] = 0
    batch = make_batch([target])
    images = batch.images.clone()
    images[:, :, :, :16] += 2  # what is to be seen
    batch = type(batch)(batch.image_ids, images, batch.targets, batch.seeds)
    task = semantic_task(decoder_options={"out_stride": 2})
    before = trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)[0]["val/miou_ground_truth_boxes"]
    trainer(tmp_path, 60).fit(task, loader([batch] * 10), loader([batch]))
    after = trainer(tmp_path, 1).validate(task, loader([batch]), verbose=False)[0]["val/miou_ground_truth_boxes"]
    assert after > max(0.9, before)


def test_stage_two_starts_from_a_checkpoint_of_stage_one(tmp_path):
    batches = [make_batch([TARGETS["no mask"], TARGETS["no object"]])]
    first = DetectionTask(3, NAMES, detector="toy")
    fitter = trainer(tmp_path, 2)
    fitter.fit(first, loader(batches), loader(batches))
    fitter.save_checkpoint(tmp_path / "one.ckpt")
    second = semantic_task(detector_checkpoint=str(tmp_path / "one.ckpt"))
    fitter = trainer(tmp_path, 1)
    masked = loader([make_batch([TARGETS["all masks"]])])
    fitter.fit(second, masked, masked)
    fitter.save_checkpoint(tmp_path / "two.ckpt")
    inner = second.model.detector.frozen.module.state_dict()
    assert all(torch.equal(value, inner[key]) for key, value in first.detector.state_dict().items())
    assert read_checkpoint(tmp_path / "two.ckpt")["hyper_parameters"]["class_names"] == NAMES
    assert not list(tmp_path.glob("*.tmp"))

    torch.manual_seed(0)
    other = SemanticTask(4, detector="toy", detector_checkpoint=str(tmp_path / "one.ckpt"))
    with pytest.raises(CheckpointError, match=r"one\.ckpt: "):
        other.setup("fit")


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_checkpoints_are_named(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: refused"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"weights": torch.zeros(1000)}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match=r"foreign\.ckpt: not a checkpoint of dasnet_lightning"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    whole = (tmp_path / "foreign.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt: damaged or truncated"):
        read_checkpoint(tmp_path / "cut.ckpt")


def test_onecycle_needs_to_know_where_it_ends(tmp_path):
    task = SemanticTask(3, NAMES, detector="toy", optimizer=OptimizerConfig("adamw", schedule="onecycle"))
    task.trainer = trainer(tmp_path, -1)
    with pytest.raises(ConfigError, match="max_steps"):
        task.configure_optimizers()


def test_the_papers_recipe_doubles_the_rate_of_biases_without_decay():
    task = SemanticTask(3, NAMES, detector="toy")
    task.trainer = L.Trainer(accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False)
    built = task.configure_optimizers()
    weights, biases = built["optimizer"].param_groups
    assert (weights["lr"], weights["weight_decay"], weights["momentum"]) == (0.01, 5e-4, 0.9)
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0.0)
    trained = {id(p) for group in (weights, biases) for p in group["params"]}
    assert trained == {id(p) for p in task.model.parameters() if p.requires_grad}
