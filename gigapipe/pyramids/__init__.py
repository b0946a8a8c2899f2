"""Pyramids: one OME-Zarr store a slide, holding it at every chosen resolution; and the canvas read from it."""

from gigapipe.pyramids.store import Pyramid

__all__ = ["Pyramid"]
