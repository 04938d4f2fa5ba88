"""Choice of images by the hash of their ids: a validation split, and training images for the score threshold."""

import hashlib
from collections.abc import Sequence

from dasnet_lightning.data.records import ImageRecord

VAL_SHARE = 0.2
FEWEST_HELD_OUT = 20


def choose_validation(records: Sequence[ImageRecord]) -> frozenset[str]:
    """Choose a fifth of the images by the hash of their ids, so that added images move no other.

    If that puts all or none of the images with masks into the validation split, a fifth of these and a fifth of the
    others are chosen, each by hash. Masks are then both trained and evaluated. A single image with masks is trained.
    """
    ranked = sorted(records, key=lambda record: _hash(record.image_id))
    count = round(VAL_SHARE * len(ranked))
    chosen = ranked[:count]
    masked = [record for record in ranked if record.has_masks]
    if sum(record.has_masks for record in chosen) in (0, len(masked)) and 0 < count < len(ranked) and masked:
        plain = [record for record in ranked if not record.has_masks]
        wanted = max(1, round(VAL_SHARE * len(masked))) if len(masked) > 1 else 0
        wanted = max(min(wanted, count), count - len(plain))
        chosen = [*masked[:wanted], *plain[: count - wanted]]
    return frozenset(record.image_id for record in chosen)


def hold_out(records: Sequence[ImageRecord], share: float) -> frozenset[str]:
    """Return the ids of training images that a detector does not see, so that its scores on them are those of new images.

    They are chosen by the hash of their ids, others than those that `choose_validation` would choose. Fewer than
    `FEWEST_HELD_OUT` images say too little about scores; then none are held out.

    Args:
        records: the training images.
        share: share of the images with a box that are held out.
    """
    ranked = sorted((record for record in records if record.objects), key=lambda record: _hash(record.image_id))
    count = round(share * len(ranked))
    return (
        frozenset(record.image_id for record in ranked[len(ranked) - count :])
        if count >= FEWEST_HELD_OUT
        else frozenset()
    )


def _hash(image_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(image_id.encode(errors="surrogatepass"), digest_size=8).digest(), image_id
