"""Pyramids: one OME-Zarr store for each slide, with every chosen resolution; and the canvas that is read from it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gigapipe.pyramids.store import Pyramid

__all__ = ["Pyramid"]


def __getattr__(name: str) -> Any:
    """`Pyramid`, imported when it is asked for: the workflow is planned without zarr, which is slow to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gigapipe.pyramids import store

    return getattr(store, name)
