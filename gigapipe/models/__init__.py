"""Models, written as for one image on one machine; they do not depend on ranks."""

from gigapipe.models.resnet import NORMS, POOLS, RESNETS, resnet18, resnet34, resnet50
from gigapipe.models.unet import GigapixelUNet

__all__ = ["NORMS", "POOLS", "RESNETS", "GigapixelUNet", "resnet18", "resnet34", "resnet50"]
