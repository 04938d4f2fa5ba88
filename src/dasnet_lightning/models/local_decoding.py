"""Faster decoding with the same result as `models.dasnet`: fine levels are decoded only around the boxes.

Outside its boxes the attended features of a region are zero, and the result is not used. So only the coarse levels of a
region are decoded as whole maps. The finer ones are decoded in windows around the boxes, widened by the reach of the
decoder's layers (LocalDecoder.input_windows). tests/models/test_local_decoding.py shows that features and gradients are
those of whole maps; tests/models/test_local_predictions.py shows it for predictions and the loss.
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
from dasnet_lightning.nn.decoder.base import CellwiseFn, LocalDecoder, SkipFeatures, require_switches
from dasnet_lightning.nn.decoder.layers import halo
from dasnet_lightning.nn.heads import PositionSensitiveHead, SemanticHead
from dasnet_lightning.types import Pyramid, Regions

WHOLE_SHARE = 0.75  # windows that cover this share of a map cost as much as the map, with their halos
SLACK = 1.2  # limit on the cells of a window in a bucket, as a multiple of its own cells
COARSE_FACTOR = 8  # coarse features are small, so this many times more regions are decoded at once


@dataclass(frozen=True, eq=False)
class DecodedWindows:
    """Decoded features of some of the requested windows.

    Attributes:
        window_index: which of the requested windows these are.
        patch_index: the patch that holds each window.
        patches: the features; a patch may hold several windows.
    """

    window_index: Int64[Tensor, " k"]
    patch_index: Int64[Tensor, " k"]
    patches: Patches


def decodes_locally(model: DASNet) -> bool:
    """Whether `decode_windows` decodes only the windows.

    It requires a LocalDecoder, one of the library's heads, and no soft attention.
    """
    own_head = isinstance(model.head, SemanticHead | PositionSensitiveHead)
    return isinstance(model.decoder, LocalDecoder) and own_head and model.soft_attention == 0


def decode_windows(
    model: DASNet, pyramid: Pyramid, regions: Regions, windows: Sequence[Windows], regions_at_once: int
) -> Iterator[DecodedWindows]:
    """Decode the features that the head needs for windows of an image; the head itself is not applied.

    Only the cells are decoded that the head reads and that bilinear interpolation to the `grid` of a window needs. If the
    model does not decode locally, whole maps are decoded instead.

    Args:
        model: the network.
        pyramid: features of the images.
        regions: the regions to decode.
        windows: one window for each box, in the order of `regions.boxes`. Each entry holds those of images that are read
            at one size, its `grid`.
        regions_at_once: limit on the whole maps that are held in memory together.
    """
    if not decodes_locally(model):
        yield from _decode_whole(model, pyramid, regions, regions_at_once)
        return
    assert isinstance(model.decoder, LocalDecoder)
    grid = model.decoder.out_size(pyramid)
    read = join_windows([resize_input_window(item, grid) for item in windows], grid).grow(halo(model.head))
    yield from _decode_local(model.decoder, pyramid, regions, model.rounding, read, regions_at_once)


def _decode_whole(model: DASNet, pyramid: Pyramid, regions: Regions, regions_at_once: int) -> Iterator[DecodedWindows]:
    region_index = regions.region_index.cpu()
    for start in range(0, len(regions), regions_at_once):
        stop = start + regions_at_once
        features = model.decoder(model.attend(pyramid, regions.select(start, stop)))
        window_index = ((region_index >= start) & (region_index < stop)).nonzero()[:, 0]
        yield DecodedWindows(window_index, region_index[window_index] - start, whole_maps(features))


def _decode_local(
    decoder: LocalDecoder,
    pyramid: Pyramid,
    regions: Regions,
    rounding: Rounding,
    windows: Windows,
    regions_at_once: int,
) -> Iterator[DecodedWindows]:
    """Decode windows of the decoder's maps, one for each box; each window lies in one patch."""
    region_index = regions.region_index.cpu()
    step = regions_at_once * COARSE_FACTOR
    for start in range(0, len(regions), step):
        selected = regions.select(start, start + step)
        window_index = ((region_index >= start) & (region_index < start + step)).nonzero()[:, 0]
        owners = region_index[window_index] - start
        skips = AttendedSkipFeatures(pyramid, selected, rounding)
        chunks = torch.arange(len(selected)).split(regions_at_once)
        coarse = torch.cat([decoder.decode_coarse(skips.take(chunk)) for chunk in chunks])
        for decoded in _decode_selected(decoder, coarse, skips, windows.take(window_index), owners, regions_at_once):
            yield DecodedWindows(window_index[decoded.window_index], decoded.patch_index, decoded.patches)


def _decode_selected(
    decoder: LocalDecoder,
    coarse: Float[Tensor, "r c h w"],
    skips: "AttendedSkipFeatures",
    windows: Windows,
    owners: Int64[Tensor, " n"],
    regions_at_once: int,
) -> Iterator[DecodedWindows]:
    """Decode windows, `windows[i]` of region `owners[i]`: mostly covered maps as a whole, the others in buckets."""
    shares = windows.clip().areas / (windows.grid[0] * windows.grid[1])
    mostly_covered = torch.zeros(len(coarse)).index_add(0, owners, shares) >= WHOLE_SHARE
    for whole_regions in mostly_covered.nonzero()[:, 0].split(regions_at_once):
        window_index = torch.isin(owners, whole_regions).nonzero()[:, 0]
        features = whole_maps(coarse[whole_regions.to(coarse.device)])
        patches = decoder.decode_fine(features, skips.take(whole_regions))
        yield DecodedWindows(window_index, torch.searchsorted(whole_regions, owners[window_index]), patches)
    remaining = (~mostly_covered[owners]).nonzero()[:, 0]
    windows, owners = windows.take(remaining), owners[remaining]
    inputs, input_of_window = merge_windows(decoder.input_windows(windows, skips.pyramid), owners)
    input_owners = torch.zeros(len(inputs), dtype=torch.int64).scatter(0, input_of_window, owners)
    grid = (coarse.shape[2], coarse.shape[3])
    for members, size in size_buckets(inputs, SLACK, regions_at_once * grid[0] * grid[1]):
        patch_of_input = torch.full((len(inputs),), -1)
        patch_of_input = patch_of_input.index_copy(0, torch.tensor(members), torch.arange(len(members)))
        in_bucket = (patch_of_input[input_of_window] >= 0).nonzero()[:, 0]
        start, patch_owners = inputs.start[members], input_owners[members]
        features = Patches(cut(coarse, patch_owners.to(coarse.device), start, size), start, grid)
        patches = decoder.decode_fine(features, skips.take(patch_owners))
        patch_index = patch_of_input[input_of_window[in_bucket]]
        covered = patches.windows.take(patch_index).contains(windows.take(in_bucket))
        assert covered, "a layer of the decoder reads further than its `input_windows` says"
        yield DecodedWindows(remaining[in_bucket], patch_index, patches)


class AttendedSkipFeatures(SkipFeatures):
    """Skip features that are attended on demand, one entry for each region in `sources`.

    Instances that come from `take` share one cache of attention maps and of cellwise results.
    """

    def __init__(self, pyramid: Pyramid, regions: Regions, rounding: Rounding) -> None:
        self.pyramid = pyramid
        self.regions = regions
        self.rounding: Rounding = rounding
        self.sources = torch.arange(len(regions), device=regions.image_index.device)
        self._attention_maps: dict[Size, Bool[Tensor, "r 1 h w"]] = {}
        self._levels: dict[tuple[int, CellwiseFn | None], tuple[Tensor, Tensor]] = {}

    def take(self, sources: Int64[Tensor, " m"]) -> "AttendedSkipFeatures":
        """Select regions, in any order and any number of times."""
        selected = AttendedSkipFeatures(self.pyramid, self.regions, self.rounding)
        selected.sources = sources.to(self.sources.device)
        selected._attention_maps, selected._levels = self._attention_maps, self._levels
        return selected

    def level(
        self, index: int, at: Patches | None = None, cellwise: CellwiseFn | None = None
    ) -> Float[Tensor, "m c h w"]:
        """See `SkipFeatures.level`."""
        level, outside = self._apply_cellwise(index, cellwise)
        keep, images = self._attention((level.shape[2], level.shape[3])), self.regions.image_index[self.sources]
        if at is None or at.start is None:
            return torch.where(keep[self.sources], level[images], outside)
        keep = cut(keep, self.sources, at.start, at.size, fill=0.0)
        return torch.where(keep, cut(level, images, at.start, at.size), outside)

    def switches(self, index: int, at: Patches | None = None) -> UInt8[Tensor, "m c h w"]:
        """See `SkipFeatures.switches`."""
        switches, images = require_switches(self.pyramid)[index], self.regions.image_index[self.sources]
        if at is None or at.start is None:
            return switches[images]
        return cut(switches, images, at.start, at.size)

    def _apply_cellwise(
        self, index: int, cellwise: CellwiseFn | None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "1 c 1 1"]]:
        """Apply `cellwise` to the level of each image, and to the zero cell that stands for all cells outside the boxes."""
        if (index, cellwise) not in self._levels:
            level = self.pyramid.levels[index]
            zero = torch.zeros_like(level[:1, :, :1, :1])
            self._levels[index, cellwise] = (level, zero) if cellwise is None else (cellwise(level), cellwise(zero))
        return self._levels[index, cellwise]

    def _attention(self, size: Size) -> Bool[Tensor, "r 1 h w"]:
        if size not in self._attention_maps:
            boxes, region_index, image = self.regions.boxes, self.regions.region_index, self.pyramid.size
            keep = box_attention(boxes, region_index, len(self.regions), image, size, self.rounding)
            self._attention_maps[size] = keep[:, None] > 0
        return self._attention_maps[size]
