"""Decoding in windows: the coarse levels of a region whole, the finer ones only where something is read.

Outside its boxes the attended features of a region are zero and nothing is read, so the finer levels are decoded in
windows around the boxes, as wide as the decoder's own layers look (LocalDecoder.needs): the same numbers as a decode of
the whole map, for a share of its operations and memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from dasnet_lightning.functional.attention import Rounding, box_attention
from dasnet_lightning.functional.patches import Patches, cut, whole_maps
from dasnet_lightning.functional.windows import (
    Size,
    Windows,
    join_windows,
    merge_windows,
    resize_input_window,
    size_buckets,
)
from dasnet_lightning.models.dasnet import DASNet
from dasnet_lightning.nn.decoder.base import CellwiseFn, LocalDecoder, SkipFeatures, known_switches
from dasnet_lightning.nn.decoder.layers import halo
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.types import Pyramid, Regions

WHOLE_SHARE = 0.75  # windows that cover so much of a region's map cost as much as the map, with their halos
SLACK = 1.2  # a window may get so many times its own cells, to share a bucket
COARSE_FACTOR = 8  # so many more regions are coarsely decoded before their windows: their features are small


@dataclass(frozen=True, eq=False)
class DecodedWindows:
    """Decoded features: of the windows `numbers` (their places in what was asked for), window i in patch `rows[i]`."""

    numbers: Int64[Tensor, " k"]
    rows: Int64[Tensor, " k"]
    patches: Patches


class AttendedSkipFeatures(SkipFeatures):
    """The levels of the regions `sources`, one for each patch, attended; made only where they are asked for.

    All that `of` makes share the attention maps of all regions, and what was made of each image's levels.
    """

    def __init__(self, pyramid: Pyramid, regions: Regions, rounding: Rounding) -> None:
        self.pyramid = pyramid
        self.regions = regions
        self.rounding: Rounding = rounding
        self.sources = torch.arange(len(regions), device=regions.image_index.device)
        self.keep: dict[Size, Bool[Tensor, "r 1 h w"]] = {}
        self.made: dict[tuple[int, CellwiseFn | None], tuple[Tensor, Tensor]] = {}

    def of(self, sources: Int64[Tensor, " m"]) -> "AttendedSkipFeatures":
        """The same for some of the regions, in any order and any number of times."""
        some = AttendedSkipFeatures(self.pyramid, self.regions, self.rounding)
        some.sources, some.keep, some.made = sources.to(self.sources.device), self.keep, self.made
        return some

    def level(self, index: int, at: Patches | None = None, each: CellwiseFn | None = None) -> Float[Tensor, "m c h w"]:
        level, nothing = self._made(index, each)
        keep, images = self._attention((level.shape[2], level.shape[3])), self.regions.image_index[self.sources]
        if at is None or at.start is None:
            return torch.where(keep[self.sources], level[images], nothing)
        kept = cut(keep, self.sources, at.start, at.size, fill=0.0)
        return torch.where(kept, cut(level, images, at.start, at.size), nothing)

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        codes, images = known_switches(self.pyramid)[index], self.regions.image_index[self.sources]
        if at is None or at.start is None:
            return codes[images]
        return cut(codes, images, at.start, at.size)

    def _made(self, index: int, each: CellwiseFn | None) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "1 c 1 1"]]:
        """The images' level as `each` makes it, and what it makes of a cell outside of the boxes."""
        if (index, each) not in self.made:
            level = self.pyramid.levels[index]
            nothing = torch.zeros_like(level[:1, :, :1, :1])
            self.made[index, each] = (level, nothing) if each is None else (each(level), each(nothing))
        return self.made[index, each]

    def _attention(self, size: Size) -> Bool[Tensor, "r 1 h w"]:
        if size not in self.keep:
            boxes, owners, image = self.regions.boxes, self.regions.region_index, self.pyramid.size
            keep = box_attention(boxes, owners, len(self.regions), image, size, self.rounding)
            self.keep[size] = keep[:, None] > 0
        return self.keep[size]


def decodes_locally(model: DASNet) -> bool:
    """Whether `decode_windows` decodes only the windows: needs a LocalDecoder, a head of ours, and no soft attention."""
    ours = isinstance(model.head, SemanticHead | PositionSensitiveHead)
    return isinstance(model.decoder, LocalDecoder) and ours and model.soft_attention == 0


def decode_windows(
    model: DASNet, pyramid: Pyramid, regions: Regions, windows: Sequence[Windows], regions_at_once: int
) -> Iterator[DecodedWindows]:
    """Decode what the head reads of windows: the decoder's features, with the cells around them. The head is yet to come.

    Only the cells that bilinear interpolation to a window's `grid` reads are decoded. A model that does not decode locally
    gives whole maps instead.

    Args:
        model: the network.
        pyramid: features of the images.
        regions: what to decode.
        windows: one window for each box of the regions, in their order; one list for each size that images are read at.
        regions_at_once: limit on the whole maps that are held in memory together.
    """
    if not decodes_locally(model):
        yield from _decode_whole(model, pyramid, regions, regions_at_once)
        return
    assert isinstance(model.decoder, LocalDecoder)
    grid = model.decoder.out_size(pyramid)
    read = join_windows([resize_input_window(part, grid) for part in windows], grid).grow(halo(model.head))
    owners = regions.region_index
    yield from _decode_local(model.decoder, pyramid, regions, model.rounding, read, owners, regions_at_once)


def _decode_whole(model: DASNet, pyramid: Pyramid, regions: Regions, regions_at_once: int) -> Iterator[DecodedWindows]:
    owners = regions.region_index.cpu()
    for start in range(0, len(regions), regions_at_once):
        selected = regions.select(start, start + regions_at_once)
        features = model.decoder(model.attend(pyramid, selected))
        numbers = ((owners >= start) & (owners < start + regions_at_once)).nonzero()[:, 0]
        yield DecodedWindows(numbers, owners[numbers] - start, whole_maps(features))


def _decode_local(
    decoder: LocalDecoder,
    pyramid: Pyramid,
    regions: Regions,
    rounding: Rounding,
    windows: Windows,
    owners: Int64[Tensor, " n"],
    at_once: int,
) -> Iterator[DecodedWindows]:
    """Decode windows of the decoder's maps, window i of region `owners[i]`, exactly as whole maps would be.

    Each window comes in one piece. at_once: how many whole maps may be held together.
    """
    owners = owners.cpu()
    step = at_once * COARSE_FACTOR
    for first in range(0, len(regions), step):
        part = regions.select(first, first + step)
        numbers = ((owners >= first) & (owners < first + step)).nonzero()[:, 0]
        skips = AttendedSkipFeatures(pyramid, part, rounding)
        every = torch.arange(len(part)).split(at_once)
        coarse = torch.cat([decoder.decode_coarse(skips.of(some)) for some in every])
        for piece in _decode_part(decoder, coarse, skips, windows.take(numbers), owners[numbers] - first, at_once):
            yield DecodedWindows(numbers[piece.numbers], piece.rows, piece.patches)


def _decode_part(
    decoder: LocalDecoder,
    coarse: Float[Tensor, "r c h w"],
    skips: AttendedSkipFeatures,
    windows: Windows,
    owners: Int64[Tensor, " n"],
    at_once: int,
) -> Iterator[DecodedWindows]:
    """Regions whose windows cover most of the map as whole maps, the windows of the others in buckets."""
    shares = windows.clip().areas / (windows.grid[0] * windows.grid[1])
    is_whole = torch.zeros(len(coarse)).index_add(0, owners, shares) >= WHOLE_SHARE
    for sources in is_whole.nonzero()[:, 0].split(at_once):
        numbers = torch.isin(owners, sources).nonzero()[:, 0]
        features = whole_maps(coarse[sources.to(coarse.device)])
        patches = decoder.decode_fine(features, skips.of(sources))
        yield DecodedWindows(numbers, torch.searchsorted(sources, owners[numbers]), patches)
    numbers = (~is_whole[owners]).nonzero()[:, 0]
    wanted = windows.take(numbers)
    entries, holder = merge_windows(decoder.needs(wanted, skips.pyramid), owners[numbers])
    sources = torch.zeros(len(entries), dtype=torch.int64).scatter(0, holder, owners[numbers])
    grid = (coarse.shape[2], coarse.shape[3])
    for members, size in size_buckets(entries, SLACK, at_once * grid[0] * grid[1]):
        row = torch.full((len(entries),), -1).index_copy(0, torch.tensor(members), torch.arange(len(members)))
        chosen = (row[holder] >= 0).nonzero()[:, 0]
        start = entries.start[members]
        features = Patches(cut(coarse, sources[members].to(coarse.device), start, size), start, grid)
        patches = decoder.decode_fine(features, skips.of(sources[members]))
        rows = row[holder[chosen]]
        assert patches.windows.take(rows).contains(wanted.take(chosen)), "a layer looks further than `needs` says"
        yield DecodedWindows(numbers[chosen], rows, patches)
