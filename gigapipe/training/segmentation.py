"""Learning, pixel by pixel, where the tissue is or regions of several classes, from whole slides and their masks."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
import zarr
from torch import nn

from gigapipe.errors import InputError
from gigapipe.models import GigapixelUNet
from gigapipe.models.layout import in_channels_last
from gigapipe.models.networks import segmenter
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.files import Range, folder_of
from gigapipe.pyramids.masks import read_mask
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.pyramids.reading import read_pixels
from gigapipe.spatial import Mesh, SpatialTensor, decompose, gather, late_gradients
from gigapipe.spatial.late import step_of_passes
from gigapipe.spatial.recording import Recorded
from gigapipe.spatial.window import Rectangle
from gigapipe.training.ahead import with_following
from gigapipe.training.augmentation import UNCHANGED, Augmentation
from gigapipe.training.canvases import Read, under_symmetry
from gigapipe.training.inverted import as_seen
from gigapipe.training.losses import (
    dice,
    dice_and_cross_entropy,
    dice_and_cross_entropy_of_classes,
    dice_of_classes,
)
from gigapipe.training.settings import Settings
from gigapipe.training.streaming import Image, Memory, Streaming

TRIED = 512, 512
"""Rows and columns on which it is seen what a network of the user's makes."""


class SegmenterSettings(Settings):
    """The gigapixel U-Net, or a network of the user's, on slides of any size; its output is the logit of tissue."""

    task = "tissue"

    @property
    def channels(self) -> int:
        """Of what the network makes."""
        return 1

    def model(self) -> nn.Module:
        if self.network:
            return in_channels_last(segmenter(self.network, self.network_options, self.channels, TRIED))
        return in_channels_last(GigapixelUNet(self.channels))

    def pairs(self, table: pd.DataFrame, pyramids: Path, masks: Path, mesh: Mesh, stage: Path | None = None) -> "Pairs":
        return Pairs(table, pyramids, masks, self.mpp, mesh, stage)

    def loss(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of an output and a mask, images both."""
        return dice_and_cross_entropy(logits, mask)

    def dice(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of an output and a mask, images both."""
        return dice(logits, mask)

    def found(self, logits: torch.Tensor) -> torch.Tensor:
        """The mask, uint8, that an output is taken for."""
        return (logits > 0).to(torch.uint8)


class RegionSettings(SegmenterSettings):
    """The same, whose outputs are logits of classes: first what is none of them."""

    task = "segmentation"

    classes: list[str]

    @property
    def channels(self) -> int:
        return 1 + len(self.classes)

    def pairs(self, table: pd.DataFrame, pyramids: Path, masks: Path, mesh: Mesh, stage: Path | None = None) -> "Pairs":
        return Pairs(table, pyramids, masks, self.mpp, mesh, stage, self.classes)

    def loss(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return dice_and_cross_entropy_of_classes(logits, mask)

    def dice(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return dice_of_classes(logits, mask)

    def found(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(1, keepdim=True).to(torch.uint8)


Augmented = tuple[int, Augmentation]
"""A slide, by its number, and its augmentation."""


class Pairs:
    """The slides of `table` (column `slide`) and their masks, each of its own size, at `mpp` µm per pixel.

    Masks are of tissue, or of `classes`. The slides' chunks are kept in `stage`, a folder on the node's own disk, if it
    is given. Raises InputError if a pyramid or a mask is missing, they differ in size, or a mask has other classes.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        pyramids: Path,
        masks: Path,
        mpp: float,
        mesh: Mesh,
        stage: Path | None = None,
        classes: Sequence[str] = (),
    ):
        self.slides, self.mesh, self.stage, self.classes = list(table["slide"]), mesh, stage, list(classes)
        self.pyramids = [Pyramid(Path(pyramids) / slide) for slide in self.slides]
        self.images = [pyramid.array(mpp) for pyramid in self.pyramids]
        self.masks = [read_mask(Path(masks) / slide, classes) for slide in self.slides]
        for slide, image, mask in zip(self.slides, self.images, self.masks, strict=True):
            if image.shape[1:] != mask.shape:
                raise InputError(
                    f"slide {slide}: its mask has {mask.shape} pixels at {mpp:g} µm/px, the slide {image.shape[1:]}; "
                    "make the mask again with `gigapipe mask`"
                )

    def __len__(self) -> int:
        return len(self.slides)

    def identity(self) -> list:
        """What says, in JSON, which slides and masks these are."""
        masks = [hashlib.sha256(np.asarray(mask[:]).tobytes()).hexdigest() for mask in self.masks]
        return [self.slides, [pyramid.source["md5"] for pyramid in self.pyramids], masks]

    def size(self, index: int) -> tuple[int, int]:
        rows, columns = self.masks[index].shape
        return rows, columns

    def image(
        self,
        index: int,
        streaming: Streaming,
        augmentation: Augmentation = UNCHANGED,
        following: Augmented | None = None,
    ) -> Image:
        """A slide (1, 3, rows, columns), float32 inverted intensity; nothing of it is shifted.

        Where slides are not computed by tiles, the one `following` is read meanwhile.
        """
        (read, size), ahead = self._reader(index, augmentation, streaming), streaming.ahead
        if ahead:
            read = ahead.reader((self, index, augmentation), self.mesh.rectangle(size), read)

        def coloured(rectangle: Rectangle, device: torch.device) -> torch.Tensor:
            return as_seen([read(rectangle)], [augmentation], device, streaming.cache.memory)

        image = streaming.image(coloured, (1, 3, *size))
        if following and ahead:
            read_next, next_size = self._reader(*following, streaming)
            ahead.begin((self, *following), functools.partial(read_next, self.mesh.rectangle(next_size)))
        return image

    def _reader(self, index: int, augmentation: Augmentation, streaming: Streaming) -> tuple[Read, tuple[int, int]]:
        """What gives the pixels of any rectangle of an augmented slide, and its size (rows, columns)."""
        of_image = functools.partial(_of_image, self.images[index], self.stage, streaming.cache)
        return under_symmetry(of_image, self.size(index), augmentation.symmetry)

    def mask(self, index: int, streaming: Streaming, beside: Image, augmentation: Augmentation = UNCHANGED) -> Image:
        """Its mask (1, 1, rows, columns), float32, turned alike."""
        of_mask = functools.partial(_of_mask, self.masks[index], streaming.cache)
        read, size = under_symmetry(of_mask, self.size(index), augmentation.symmetry)

        def as_floats(rectangle: Rectangle, device: torch.device) -> torch.Tensor:
            return torch.from_numpy(read(rectangle)[None]).to(device).float()

        return streaming.image(as_floats, (1, 1, *size), beside)


def _of_image(image: zarr.Array, stage: Path | None, cache: PixelCache, rectangle: Rectangle) -> np.ndarray:
    return read_pixels(image, *rectangle, stage, cache)


def _of_mask(mask: zarr.Array, cache: PixelCache, rectangle: Rectangle) -> np.ndarray:
    def load(rows: Range, columns: Range) -> np.ndarray:
        return np.asarray(mask[slice(*rows), slice(*columns)])

    return cache.read(folder_of(mask), mask.shape, mask.chunks, load, *rectangle)[None]


class Segmentation:
    """A `Task` (see task.py)."""

    kind: ClassVar[type[SegmenterSettings]] = SegmenterSettings
    started_from = None

    def __init__(
        self, settings: SegmenterSettings, training: Pairs, validation: Pairs, mesh: Mesh, memory: Memory | None
    ):
        self.settings, self.training, self.validation, self.mesh = settings, training, validation, mesh
        self.slides = len(training)
        self.following: list[int] | None = None
        torch.manual_seed(settings.seed)
        self.model = decompose(settings.model().to(mesh.device), mesh)
        self.streaming = Streaming(memory, mesh, self.model)
        self.largest = max((pairs.size(i) for pairs in (training, validation) for i in range(len(pairs))), key=np.prod)

    def identity(self) -> list:
        return [self.training.identity(), self.validation.identity()]

    def backward(self, indices: list[int], epoch: int, scale: float = 1.0) -> float:
        def augmented(index: int) -> Augmented:
            return index, self.settings.augmentation(epoch, self.training.slides[index])

        self._prepare()
        total = 0.0
        with step_of_passes(self.mesh, len(indices)):
            for slide, after in with_following(map(augmented, indices)):  # of different sizes: one after another
                after = after or (augmented(self.following[0]) if self.following else None)
                loss = self._compared(self.training, *slide, after, self.settings.loss)[0] / len(indices)
                with late_gradients(self.mesh):
                    (loss if scale == 1 else loss * scale).backward()
                self.streaming.done()
                total += loss.item()
        return total

    @torch.no_grad()
    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        self.model.eval()
        self._prepare()
        found = torch.zeros(len(self.validation), 2, dtype=torch.float64)
        own = range(self.mesh.data_index, len(self.validation), self.mesh.data)
        for (index, unchanged), after in with_following((index, UNCHANGED) for index in own):
            both = self._compared(self.validation, index, unchanged, after, self.settings.loss, self.settings.dice)
            found[index] = (torch.stack(both) / self.mesh.image_ranks).cpu()
            self.streaming.done()
        return dict(zip(("loss", "dice"), self.mesh.everyone.sum_(found).mean(0).tolist(), strict=True))

    def _prepare(self) -> None:
        def unread(rectangle: Rectangle, device: torch.device) -> torch.Tensor:
            raise NotImplementedError  # what is planned is not computed

        def loss(output: Image, beside: Image) -> torch.Tensor:
            nothing = self.streaming.image(unread, (1, 1, *self.largest), beside)
            return self.settings.loss(output, nothing)

        with self.settings.autocast(self.mesh.device):
            self.streaming.prepare(self.model, (1, 3, *self.largest), loss)

    def _compared(
        self, pairs: Pairs, index: int, augmentation: Augmentation, following: Augmented | None, *measures
    ) -> list[torch.Tensor]:
        """Measures of the model's output and the mask of a slide; the one `following` is read meanwhile."""
        with self.settings.autocast(self.mesh.device):
            image = pairs.image(index, self.streaming, augmentation, following)
            mask = pairs.mask(index, self.streaming, image, augmentation)
            logits = self.model(image)
            return [measure(logits, mask) for measure in measures]


class SegmentationOfRegions(Segmentation):
    kind = RegionSettings


@torch.no_grad()
def segment(model: nn.Module, settings: SegmenterSettings, pairs: Pairs, streaming: Streaming) -> Iterator[np.ndarray]:
    """The mask that is found of each slide (rows, columns), uint8, one after another; on all ranks alike.

    Every rank of the mesh computes on every slide: `mesh.data` must be 1.
    """
    model.eval()
    largest = max((pairs.size(i) for i in range(len(pairs))), key=np.prod)
    with settings.autocast(pairs.mesh.device):
        streaming.prepare(model, (1, 3, *largest), lambda output, _: settings.found(output))
    for (index, unchanged), after in with_following((index, UNCHANGED) for index in range(len(pairs))):
        with settings.autocast(pairs.mesh.device):
            found = settings.found(model(pairs.image(index, streaming, unchanged, after)))
        image = found.computed() if isinstance(found, Recorded) else found
        assert isinstance(image, SpatialTensor)
        streaming.done()
        yield gather(image)[0, 0].cpu().numpy()
