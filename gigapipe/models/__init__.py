"""Models, written as for one image on one machine: nothing in them knows of ranks."""

from gigapipe.models.resnet import resnet18
from gigapipe.models.unet import GigapixelUNet

__all__ = ["GigapixelUNet", "resnet18"]
