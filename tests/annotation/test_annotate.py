"""Annotation of a data set: every format, existing masks, marks of the model, and what is refused."""

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from data_builders import annotation, coco_content, make_coco, make_voc, square_polygon
from pycocotools.coco import COCO

import dasnet_lightning
from dasnet_lightning.annotation.options import FORMATS
from dasnet_lightning.callbacks import AtomicCheckpointIO
from dasnet_lightning.cli.main import main
from dasnet_lightning.data.datamodule import MixedSupervisionDataModule
from dasnet_lightning.data.label_audit import PSEUDO, audit_dataset
from dasnet_lightning.data.label_counts import count_labels
from dasnet_lightning.data.mask_check import CheckedMasks
from dasnet_lightning.data.records import MaskState
from dasnet_lightning.data.sources.open import DataSet, open_dataset
from dasnet_lightning.data.splits import make_split, mask_labels
from dasnet_lightning.data.writers import WRITERS
from dasnet_lightning.data.writers.convert import convert_dataset
from dasnet_lightning.errors import ConfigError, DataError
from dasnet_lightning.tasks.config import NetworkConfig
from dasnet_lightning.tasks.instance import InstanceTask
from dasnet_lightning.tasks.semantic import SemanticTask

CLASSES = ("background", "cat", "dog")
CPU = {"device": "cpu", "batch_size": 2}


def save(folder: Path, task: str = "instance", seed: int = 0, class_names: tuple[str, ...] = CLASSES) -> Path:
    """A checkpoint of an untrained network, which draws noise inside of the boxes."""
    torch.manual_seed(seed)
    network = NetworkConfig("ssd_tiny", {"image_size": 64})
    kind = {"instance": InstanceTask, "semantic": SemanticTask}[task]
    trainer = L.Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()], enable_progress_bar=False)
    trainer.strategy.connect(kind(len(class_names), class_names, (), network))
    trainer.save_checkpoint(folder / f"{task}{seed}.ckpt")
    return folder / f"{task}{seed}.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint"))


def rows_of(count: int) -> list[dict[str, object]]:
    """Each image has a cat with a mask (two parts in the first), a dog and a cat with a box alone, and a crowd."""
    parts = [[1, 1, 9, 1, 9, 6, 1, 6], [12, 3, 15, 3, 15, 9.5, 12, 9.5]]
    rows = []
    for image in range(1, count + 1):
        rows += [
            annotation(10 * image + 3, image, 2, bbox=[3.25, 4.5, 20.125, 18], attributes={"occluded": True}),
            annotation(10 * image + 1, image, 1, bbox=[1, 1, 14, 8.5] if image == 1 else [5, 5, 10, 10],
                       segmentation=parts if image == 1 else square_polygon()),
            annotation(10 * image + 2, image, 1, bbox=[20, 8, 12.5, 12]),
            annotation(10 * image + 4, image, 2, bbox=[28, 15, 10, 10], iscrowd=1),
        ]  # fmt: skip
    return rows


def make_mixed(root: Path, count: int = 3) -> Path:
    for split in ("train", "val"):
        content = coco_content(rows_of(count), num_images=count, categories=((2, "dog"), (1, "cat")))
        content = {"info": {"year": 2026}, **content, "videos": [{"id": 1}]}
        for image in content["images"]:
            image["file_name"] = f"{split}_{image['file_name']}"
        make_coco(root, content, f"annotations/instances_{split}.json", split)
    return root


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_masks_of_people(before: DataSet, after: DataSet, exact: bool = True) -> None:
    for name, source in before.sources.items():
        other = after.sources[name]
        for old, new in zip(source.records, other.records, strict=True):
            human = [place for place, item in enumerate(old.objects) if item.mask is MaskState.PRESENT]
            first, second = source.load_masks(old, human).masks, other.load_masks(new, human).masks
            union = (first | second).sum()
            assert (first & second).sum() == union if exact else (first & second).sum() >= 0.99 * union


def test_the_options_name_every_writer() -> None:
    assert set(FORMATS) == set(WRITERS)


def test_coco_keeps_rows_and_gets_marked_masks(tmp_path: Path, checkpoint: Path) -> None:
    root, out = make_mixed(tmp_path / "in"), tmp_path / "out"
    result = dasnet_lightning.annotate(root, checkpoint, out, **CPU)
    assert result.format == "coco"
    assert (result.images, result.objects, result.failures) == (6, 24, ())
    assert result.kept_as == {"box: crowd or difficult": 6, "human mask": 6, "mask": 12}
    for split in ("train", "val"):
        file = f"annotations/instances_{split}.json"
        old, new = (json.loads((folder / file).read_text()) for folder in (root, out))
        assert list(new) == list(old)
        assert {**new, "annotations": []} == {**old, "annotations": []}
        assert [row["id"] for row in new["annotations"]] == [row["id"] for row in old["annotations"]]
        for before, after in zip(old["annotations"], new["annotations"], strict=True):
            if before["id"] % 10 in (1, 4):  # masks of people and crowds
                assert after == before
                continue
            assert after["source"] == "model"
            assert 0 <= after["score"] <= 1
            added = ("segmentation", "area", "source", "score")
            assert {key: after[key] for key in after if key not in added} == {
                key: before[key] for key in before if key not in added
            }
        coco = COCO(str(out / file))
        for row in new["annotations"]:
            if row.get("source") == "model":
                x, y, width, height = row["bbox"]
                mask = coco.annToMask(row).astype(bool)
                assert mask.sum() == row["area"] > 0
                assert mask[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))].sum() == row["area"]
    assert sorted(path.name for path in out.iterdir()) == [".annotate", "annotations", "quality.csv", "train", "val"]
    assert [path.name for path in (out / ".annotate").iterdir()] == ["state.json"]


@pytest.mark.parametrize("start", FORMATS)
def test_every_format_keeps_the_masks_of_people_and_marks_those_of_the_model(
    tmp_path: Path, checkpoint: Path, start: str
) -> None:
    convert_dataset(open_dataset(make_mixed(tmp_path / "coco")), start, tmp_path / "in")
    before = open_dataset(tmp_path / "in")
    ignored = sum(item.ignore for record in before.train.records for item in record.objects)
    result = dasnet_lightning.annotate(tmp_path / "in", checkpoint, tmp_path / "out", polygon_tolerance=0, **CPU)
    assert result.format == start
    after, kept = open_dataset(tmp_path / "out"), open_dataset(tmp_path / "out", model_masks="keep")
    assert after.format == start
    check_masks_of_people(before, after)
    for name, source in before.sources.items():
        for old, new, all_masks in zip(
            source.records, after.sources[name].records, kept.sources[name].records, strict=True
        ):
            assert [item.label for item in new.objects] == [item.label for item in old.objects]
            assert [item.mask for item in new.objects] == [item.mask for item in old.objects]
            # formats with a flag leave crowds as boxes, the others take them for ordinary objects
            wanted = [item.mask is not MaskState.PRESENT and not item.ignore for item in old.objects]
            assert [item.by_model for item in new.objects] == wanted
            assert all(item.mask is MaskState.PRESENT for item in all_masks.objects if item.by_model)
            present = [place for place, item in enumerate(all_masks.objects) if item.by_model]
            loaded = kept.sources[name].load_masks(all_masks, present)
            assert all(loaded.valid), loaded.reasons
            boxes = zip((old.objects[i].box for i in present), (new.objects[i].box for i in present), strict=True)
            if start in ("coco", "voc"):  # the others keep the extent of the mask
                assert all(np.abs(np.subtract(one, other)).max() < 1e-6 for one, other in boxes)
    assert ignored in (0, 3)
    # again: the masks by the model are made anew, and are the same
    again = dasnet_lightning.annotate(tmp_path / "in", checkpoint, tmp_path / "again", polygon_tolerance=0, **CPU)
    assert again.kept_as == result.kept_as
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def tree(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".annotate" not in path.parts
    }


def test_masks_by_the_model_are_no_part_of_a_budget_and_are_counted(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", **CPU)
    for choice in ("ignore", "train"):
        data = open_dataset(tmp_path / "out", model_masks=choice)
        ids, labels = mask_labels(data.train.records)
        assert labels == tuple(frozenset({data.train.class_names.index("cat")}) for _ in ids)
        assert make_split(ids, labels, "all", 0).candidates == 3
        assert not any(item.mask is MaskState.PRESENT and item.by_model for r in data.val.records for item in r.objects)
    counts = count_labels(
        open_dataset(tmp_path / "out"), audit_dataset(open_dataset(tmp_path / "out")), CheckedMasks()
    ).splits
    assert (counts["train"]["by a model"], counts["train"]["not opened"], counts["train"]["no mask"]) == (6, 3, 3)


def test_doubtful_objects_stay_boxes_and_are_listed(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    dasnet_lightning.annotate(root, checkpoint, tmp_path / "all", **CPU)
    values = sorted(float(row["quality"]) for row in read_csv(tmp_path / "all/quality.csv") if row["quality"])
    limit = values[len(values) // 2]
    result = dasnet_lightning.annotate(root, checkpoint, tmp_path / "some", min_quality=limit, **CPU)
    doubtful = sum(value < limit for value in values)
    assert result.kept_as.get("box: doubtful", 0) == doubtful
    rows = {
        row["id"]: row
        for row in json.loads((tmp_path / "some/annotations/instances_train.json").read_text())["annotations"]
    }
    listed = [row for row in read_csv(tmp_path / "some/quality.csv") if row["kept as"] == "box: doubtful"]
    assert len(listed) == doubtful
    assert all(float(row["quality"]) < limit for row in listed)
    of_train = [rows[int(row["object"])] for row in listed if row["split"] == "train"]
    assert of_train
    assert not any("source" in row for row in of_train)
    assert (
        main(
            ["annotate", str(root), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "x"), "--min-quality", "2"]
        )
        == 2
    )


def test_an_earlier_annotation_is_made_anew_and_leaves_no_mark(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    for start in ("coco", "labelme", "cvat", "voc"):
        first, second = tmp_path / f"{start}1", tmp_path / f"{start}2"
        dasnet_lightning.annotate(root, checkpoint, first, format=start, **CPU)
        result = dasnet_lightning.annotate(first, checkpoint, second, min_quality=1.0, **CPU)
        assert result.format == start
        data = open_dataset(second, model_masks="keep")
        made = [item.by_model for record in data.train.records for item in record.objects]
        assert sum(made) == result.kept_as.get("mask", 0) // 2
        assert result.kept_as["box: doubtful"] > 0
        check_masks_of_people(open_dataset(first), data)


def test_a_corrected_labelme_shape_is_a_mask_of_a_person(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", format="labelme", **CPU)
    file = sorted((tmp_path / "out/train").glob("*.json"))[0]
    content = json.loads(file.read_text())
    shape = next(shape for shape in content["shapes"] if shape["flags"].get("model"))
    shape["points"][0][0] += 0.5
    file.write_text(json.dumps(content))
    made = sum(item.by_model for record in open_dataset(tmp_path / "out").train.records for item in record.objects)
    assert made == 5  # of six


def test_labelme_keeps_what_it_does_not_understand(tmp_path: Path, checkpoint: Path) -> None:
    convert_dataset(open_dataset(make_mixed(tmp_path / "coco")), "labelme", tmp_path / "in")
    file = sorted((tmp_path / "in/train").glob("*.json"))[0]
    content = json.loads(file.read_text())
    point = {"label": "nose", "points": [[3, 4]], "group_id": None, "shape_type": "point", "flags": {"a": True}}
    content |= {"shapes": [point, *content["shapes"]], "flags": {"checked": True}, "own": [1, 2]}
    content["shapes"][1] |= {"other_data": {"by": "me"}, "flags": {"blurred": True}}
    file.write_text(json.dumps(content))
    dasnet_lightning.annotate(tmp_path / "in", checkpoint, tmp_path / "out", **CPU)
    written = json.loads((tmp_path / "out/train" / file.name).read_text())
    assert (written["own"], written["flags"], written["shapes"][0]) == ([1, 2], {"checked": True}, point)
    assert written["shapes"][1]["other_data"] == {"by": "me"}
    assert written["shapes"][1]["flags"] == {"blurred": True, "model": True}


def test_compare_reports_the_agreement_worst_first(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mixed(tmp_path / "in")
    arguments = ["annotate", str(root), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--compare"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "Agreement" in capsys.readouterr().out
    rows = read_csv(tmp_path / "out/agreement_objects.csv")
    assert [row["class"] for row in rows] == ["cat"] * 6
    assert [float(row["IoU"]) for row in rows] == sorted(float(row["IoU"]) for row in rows)
    by_class = read_csv(tmp_path / "out/agreement.csv")
    assert by_class[0]["objects"] == "6"
    assert float(by_class[0]["mean IoU"]) == pytest.approx(np.mean([float(row["IoU"]) for row in rows]), abs=1e-3)
    plain = dasnet_lightning.annotate(root, checkpoint, tmp_path / "plain", **CPU)
    assert plain.agreement == ()


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_classes_that_the_checkpoint_does_not_know_are_segmented_and_named(tmp_path: Path, task: str) -> None:
    known = save(tmp_path, task, class_names=("background", "Cat", "owl"))
    result = dasnet_lightning.annotate(make_mixed(tmp_path / "in"), known, tmp_path / "out", **CPU)
    assert len(result.notes) == 1
    assert "'dog'" in result.notes[0]
    assert "cat" not in result.notes[0]
    rows = read_csv(tmp_path / "out/quality.csv")
    assert {row["kept as"] for row in rows if row["class"] == "dog" and row["quality"]} <= {
        "mask",
        "box: the mask is empty",
    }
    assert all(row["quality"] for row in rows if row["kept as"] == "mask")


def test_an_image_that_cannot_be_read_keeps_its_boxes(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mixed(tmp_path / "in")
    image = sorted((root / "train").iterdir())[1]
    image.write_bytes(image.read_bytes()[:200])
    arguments = ["annotate", str(root), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert image.name in capsys.readouterr().err
    rows = [row for row in read_csv(tmp_path / "out/quality.csv") if row["kept as"] == "box: the image cannot be read"]
    assert len(rows) == 2


def test_unusable_labels_and_missing_images_need_an_option(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].append(annotation(99, 1, 1, bbox=[500, 5, 4, 3]))
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="outside the image"):
        dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", **CPU)
    assert dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", fix="drop", **CPU).objects == 24
    next((root / "train").iterdir()).unlink()
    with pytest.raises(DataError, match="missing"):
        dasnet_lightning.annotate(root, checkpoint, tmp_path / "out2", fix="drop", **CPU)
    options = {"fix": "drop", "allow_missing": True, **CPU}
    assert dasnet_lightning.annotate(root, checkpoint, tmp_path / "out2", **options).images == 5


def test_the_output_must_be_a_folder_of_its_own(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    for out in (root, root / "deeper", tmp_path):
        with pytest.raises(DataError, match="lies in the data set"):
            dasnet_lightning.annotate(root, checkpoint, out, **CPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        dasnet_lightning.annotate(root, checkpoint, tmp_path / "file", **CPU)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        dasnet_lightning.annotate(root, checkpoint, tmp_path / "full", **CPU)
    with pytest.raises(ConfigError, match=r"cannot be written"):
        dasnet_lightning.annotate(root, checkpoint, tmp_path / "file/below", **CPU)
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["a.txt"]


def test_a_journal_of_another_checkpoint_or_data_set_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    root, out = make_mixed(tmp_path / "in"), tmp_path / "out"
    first = dasnet_lightning.annotate(root, checkpoint, out, **CPU)
    done = dasnet_lightning.annotate(root, checkpoint, out, **CPU)
    assert (done.kept_as, done.segmented) == (first.kept_as, 0)
    with pytest.raises(ConfigError, match="another checkpoint;"):
        dasnet_lightning.annotate(root, save(tmp_path, seed=1), out, **CPU)
    with pytest.raises(ConfigError, match="another option min_quality;"):
        dasnet_lightning.annotate(root, checkpoint, out, min_quality=0.5, **CPU)
    with pytest.raises(ConfigError, match="another data set"):
        dasnet_lightning.annotate(make_mixed(tmp_path / "more", 4), checkpoint, out, **CPU)


def test_voc_devkit_keeps_unknown_elements(tmp_path: Path, checkpoint: Path) -> None:
    from data_builders import VocObject

    objects = {
        f"p{number}": [VocObject("cat", (3, 4, 20, 22)), VocObject("dog", (10, 8, 35, 28))] for number in range(4)
    }
    root = make_voc(tmp_path / "in", objects, (), {"train": ["p0", "p1"], "val": ["p2", "p3"]})
    file = next(root.rglob("p0.xml"))
    file.write_text(file.read_text().replace("<name>cat</name>", "<name>cat</name><pose>Left</pose>"))
    result = dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", format="voc", **CPU)
    assert result.kept_as["mask"] == 8
    text = (tmp_path / "out/Annotations/p0.xml").read_text()
    assert "<pose>Left</pose>" in text
    assert text.count("<mask_source>model</mask_source>") == 2


def test_masks_by_the_model_train_as_pseudo_labels_by_choice(tmp_path: Path, checkpoint: Path) -> None:
    root = make_mixed(tmp_path / "in")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [row for row in content["annotations"] if row["id"] != 31]  # no person masks the third
    file.write_text(json.dumps(content))
    dasnet_lightning.annotate(root, checkpoint, tmp_path / "out", **CPU)
    used = {}
    for choice in ("ignore", "train"):
        module = MixedSupervisionDataModule(tmp_path / "out", (64, 64), supervision="mixed", mask_budget="1")
        module.use(open_dataset(tmp_path / "out", model_masks=choice))
        used[choice] = module.mask_ids
        assert module.split is not None
        assert len(module.split.image_ids) == 1
        rows = audit_dataset(module.opened().dataset, module.mask_ids)
        assert sum(row.mask == "trained" for row in rows) == 1
        assert sum(row.mask == PSEUDO for row in rows) == (0 if choice == "ignore" else 4)
    assert len(used["ignore"]) == 1
    assert len(used["train"]) == 2
