"""Models, written as for one image on one machine: nothing in them knows of ranks."""

from gigapipe.models.resnet import resnet18

__all__ = ["resnet18"]
