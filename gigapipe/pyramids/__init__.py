"""Pyramids: one OME-Zarr store for each slide, with every chosen resolution; and the canvas that is read from it."""

from gigapipe.pyramids.store import Pyramid

__all__ = ["Pyramid"]
