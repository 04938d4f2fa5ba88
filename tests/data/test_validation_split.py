"""The automatic validation split: by hash as ever, and with masks where the hash alone would leave one side without."""

from pathlib import Path

from dasnet_lightning.data.records import ImageRecord, MaskState, ObjectRecord
from dasnet_lightning.data.validation_split import choose_validation


def records(number: int, masked: range | set[int]) -> list[ImageRecord]:
    def state(index: int) -> MaskState:
        return MaskState.PRESENT if index in masked else MaskState.ABSENT

    return [
        ImageRecord(f"i{k}", Path(f"i{k}.jpg"), (9, 9), (ObjectRecord(f"{k}", (0, 0, 4, 4), 1, state(k)),))
        for k in range(number)
    ]


def test_images_with_masks_everywhere_are_split_as_before() -> None:
    expected = choose_validation(records(50, set()))
    assert choose_validation(records(50, range(50))) == expected
    assert len(expected) == 10


def test_a_few_masks_are_on_both_sides() -> None:
    by_hash = sorted(int(name[1:]) for name in choose_validation(records(50, set())))
    rest = [k for k in range(50) if k not in by_hash]
    for masked in (set(rest[:10]), set(by_hash[:2]), set(by_hash), {rest[0], rest[1]}):
        chosen = choose_validation(records(50, masked))
        assert len(chosen) == 10
        in_val = {k for k in masked if f"i{k}" in chosen}
        assert in_val
        assert masked - in_val
        assert chosen == choose_validation(records(50, masked)[::-1]), "the order of the records does not matter"


def test_a_split_that_has_masks_on_both_sides_stays() -> None:
    by_hash = sorted(int(name[1:]) for name in choose_validation(records(50, set())))
    rest = next(k for k in range(50) if k not in by_hash)
    assert choose_validation(records(50, {by_hash[0], rest})) == choose_validation(records(50, set()))


def test_a_single_image_with_masks_is_trained() -> None:
    for masked in range(20):
        chosen = choose_validation(records(20, {masked}))
        assert f"i{masked}" not in chosen
        assert len(chosen) == 4
