"""Choice of validation images for a data set that has no validation split."""

import hashlib
from collections.abc import Sequence

from dasnet_lightning.data.records import ImageRecord

VAL_SHARE = 0.2


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


def _hash(image_id: str) -> tuple[bytes, str]:
    return hashlib.blake2b(image_id.encode(errors="surrogatepass"), digest_size=8).digest(), image_id
