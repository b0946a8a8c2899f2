"""Models, written as for one image on one machine: nothing in them knows of ranks."""

from gigapipe.models.resnet import NORMS, resnet18, resnet34, resnet50
from gigapipe.models.unet import GigapixelUNet

RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}

__all__ = ["NORMS", "RESNETS", "GigapixelUNet", "resnet18", "resnet34", "resnet50"]
