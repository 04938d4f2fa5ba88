import math

import pytest
import torch
from torchvision.ops import box_iou

from dasnet_lightning.functional.instance_targets import SamplingOptions, draw_samples
from dasnet_lightning.functional.losses import instance_losses, mean_over_ranks
from dasnet_lightning.functional.sampling import sample_boxes
from toy import make_target

SIZE = (60, 80)
SCENES = {
    "one": [[10.0, 10, 40, 40]],
    "touching": [[10.0, 10, 40, 40], [40, 12, 70, 42]],
    "overlapping": [[10.0, 10, 40, 40], [20, 15, 50, 45], [12, 8, 38, 44]],
    "at the border": [[0.0, 0, 12, 60], [60, 40, 80, 60]],
    "partly outside": [[-10.0, -5, 15, 20]],
    "tiny": [[30.0, 30, 30.4, 30.3]],
    "a line": [[10.0, 30, 70, 30.2]],
    "the whole image": [[0.0, 0, 80, 60]],
}


def draw(boxes, seed=0, around=None, **options):
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.arange(len(boxes)) if around is None else torch.tensor(around, dtype=torch.int64)
    return sample_boxes(torch.tensor(boxes).reshape(-1, 4), chosen, SIZE, generator, **options)


@pytest.mark.parametrize("scene", SCENES)
def test_samples_keep_their_promises(scene):
    truth = torch.tensor(SCENES[scene])
    for seed in range(20):
        samples = draw(SCENES[scene], seed)
        low, high = samples.boxes[:, :2], samples.boxes[:, 2:]
        assert (low >= 0).all()
        assert (high <= torch.tensor([80.0, 60.0])).all()
        assert ((high - low) > 1 - 1e-4).all()
        iou = box_iou(samples.boxes, truth)
        for index in range(len(truth)):
            mine = samples.source == index
            assert (samples.positive & mine).sum() == 2
            assert (~samples.positive & mine).sum() <= 4
        assert (iou[~samples.positive] < 0.5).all()
        if scene not in ("tiny", "a line", "partly outside"):  # where the object's own box had to serve
            own = iou.gather(1, samples.source[:, None])[:, 0]
            assert (own[samples.positive] > 0.5).all()
            assert (own[samples.positive] >= iou.amax(dim=1)[samples.positive] - 1e-6).all()


def test_negatives_are_found_where_there_is_room():
    assert (~draw(SCENES["touching"]).positive).sum() == 8
    assert (~draw(SCENES["one"]).positive).sum() == 4


def test_fewer_negatives_come_back_where_there_is_no_room_and_the_loss_stays_defined():
    """No box overlaps an object by half and by less than half at once."""
    samples = draw(SCENES["the whole image"], min_iou=0.5)
    assert samples.positive.tolist() == [True, True]
    target = make_target([[0.0, 0, 32, 32]], [1])
    options = SamplingOptions(min_iou=0.5)
    drawn = draw_samples([target], [torch.tensor([0])], [torch.Generator().manual_seed(0)], (32, 32), options)
    assert drawn.positive.tolist() == [True, True]
    losses = mean_over_ranks(instance_losses(torch.zeros(2, 2, *drawn.labels.shape[1:]), drawn))
    assert losses["score"] == pytest.approx(math.log(2))
    assert losses["mask"] == pytest.approx(math.log(2))


def test_a_tiny_box_serves_itself():
    samples = draw(SCENES["tiny"])
    assert samples.positive.sum() == 2
    center = (samples.boxes[samples.positive][:, :2] + samples.boxes[samples.positive][:, 2:]) / 2
    assert ((center - torch.tensor([30.2, 30.15])).abs() <= 1).all()


def test_the_lower_bound_of_fcis():
    samples = draw(SCENES["touching"], min_iou=0.1)
    iou = box_iou(samples.boxes, torch.tensor(SCENES["touching"])).gather(1, samples.source[:, None])[:, 0]
    assert (iou[~samples.positive] >= 0.1).all()
    assert (~samples.positive).any()


def test_the_numbers_and_the_objects_can_be_chosen():
    samples = draw(SCENES["touching"], around=[1], positives=3, negatives=0)
    assert samples.source.tolist() == [1, 1, 1]
    assert samples.positive.all()
    assert len(draw(SCENES["touching"], around=[]).boxes) == 0
    assert len(draw([], around=[]).boxes) == 0


def test_negatives_stay_out_of_crowds():
    crowd = torch.tensor([[40.0, 0, 80, 60]])
    for seed in range(10):
        samples = draw(SCENES["one"], seed, ignored=crowd)
        inside = torch.minimum(samples.boxes[:, 2], torch.tensor(80.0)) - samples.boxes[:, 0].clamp(min=40)
        share = inside.clamp(min=0) / (samples.boxes[:, 2] - samples.boxes[:, 0])
        assert (share[~samples.positive] <= 0.5 + 1e-5).all()


def test_draws_come_from_the_generator_alone():
    first, again, other = draw(SCENES["touching"], 3), draw(SCENES["touching"], 3), draw(SCENES["touching"], 4)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.boxes, other.boxes)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    draw(SCENES["one"])
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
