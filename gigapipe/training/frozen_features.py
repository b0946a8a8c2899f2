"""What a network computes of slides whose head alone is trained: what it is computed by does not change."""

import contextlib
import functools
import time
from collections.abc import Iterator

import torch

from gigapipe.disks import tell_once
from gigapipe.models.networks import Headed
from gigapipe.models.resnet import ResNet
from gigapipe.models.trained_layers import KEPT_MAPS, training_mode
from gigapipe.spatial import SpatialTensor
from gigapipe.training.augmentation import UNCHANGED, Augmentation
from gigapipe.training.canvases import Canvases
from gigapipe.training.feature_files import FeatureFiles
from gigapipe.training.settings import Settings
from gigapipe.training.streaming import Streaming


class FrozenFeatures:
    """Computes the pooled features of a slide once for each way that it is turned, and keeps them; or, `maps`, its last
    feature map, where the pool is trained, too. Such images must not be streamed.

    If the slides have a folder of `features`, they are looked for there first, and kept there for others.
    Of a slide that is shifted, or in other colours, they are computed each time: it does not come again.
    """

    def __init__(self, model: Headed | ResNet, settings: Settings, streaming: Streaming, maps: bool = False):
        self.model, self.settings, self.streaming, self.maps = model, settings, streaming, maps
        self.autocast = settings.autocast(streaming.mesh.device)
        self.read = 0
        """Features of this rank that were not computed, but read."""
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._bytes = 0

    def outputs(
        self, canvases: Canvases, indices: list[int], augmentations: list[Augmentation] | None = None
    ) -> torch.Tensor:
        """What the network makes of slides (slides, outputs); the ranks of their images call this together."""
        pairs = zip(indices, augmentations or [UNCHANGED] * len(indices), strict=True)
        features = torch.cat([self.of(canvases, *pair) for pair in pairs])
        with self.autocast:
            return self.model.fc(features)

    def of(self, canvases: Canvases, index: int, augmentation: Augmentation) -> torch.Tensor:
        """Features (1, channels) of one slide."""
        frozen = self._frozen(canvases, index, augmentation)
        if not self.maps:
            return frozen
        with self.autocast:
            return torch.flatten(self.model.avgpool(frozen), 1)

    def _frozen(self, canvases: Canvases, index: int, augmentation: Augmentation) -> torch.Tensor:
        key = canvases.slides[index], augmentation.symmetry
        turned = augmentation == Augmentation(augmentation.symmetry)
        if turned and key in self._kept:
            return self._kept[key]
        found = self._found(canvases, index, augmentation) if turned else self._computed(canvases, index, augmentation)
        size = found.local.nbytes if isinstance(found, SpatialTensor) else 0
        if turned and self._bytes + size <= KEPT_MAPS:
            self._kept[key] = found
            self._bytes += size
        return found

    def prepare(self, size: int) -> None:
        """Decide how canvases of `size` are computed. All ranks call it together, whichever of them find features."""
        with self._as_in_prediction(size):
            pass

    @functools.cached_property
    def _files(self) -> FeatureFiles:
        return FeatureFiles(self.model, self.settings, self.maps, self.streaming.mesh.device)

    def _found(self, canvases: Canvases, index: int, augmentation: Augmentation) -> torch.Tensor:
        """Those of the folder of features, if there is one, and these are in it."""
        mesh, folder = canvases.mesh, canvases.features
        if folder is None:
            return self._computed(canvases, index, augmentation)
        if mesh.image_ranks > 1:
            if mesh.rank == 0:
                tell_once(f"features: {folder} is not used, because {mesh.image_ranks} ranks share an image")
            return self._computed(canvases, index, augmentation)
        self.prepare(canvases.size)
        begun, path = time.perf_counter(), self._files.path(canvases, index, augmentation.symmetry)
        if path and (kept := self._files.read(path)) is not None:
            self.read += 1
            kept = kept.to(mesh.device)
            if not self.maps:
                return kept
            rows, columns = kept.shape[-2:]
            return SpatialTensor(kept, (rows, columns), mesh)
        found = self._computed(canvases, index, augmentation)
        if path:
            self._files.write(path, found.local if isinstance(found, SpatialTensor) else found, begun)
        return found

    @torch.no_grad()
    def _computed(self, canvases: Canvases, index: int, augmentation: Augmentation) -> torch.Tensor:
        """The same, as prediction computes them."""
        with self._as_in_prediction(canvases.size):
            images, _ = canvases.batch([index], [augmentation], self.streaming)
            found = self.model.last_map(images) if self.maps else self.model.pooled(images)
        self.streaming.done()
        return found.clone()

    @contextlib.contextmanager
    def _as_in_prediction(self, size: int) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        with self.autocast:
            self.streaming.prepare(self.model, (1, 3, size, size))
            yield
        if training:
            training_mode(self.model)
