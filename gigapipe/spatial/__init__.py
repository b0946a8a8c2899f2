"""Any image over any number of ranks, with the gradients of the undivided image. Depends on torch alone.

    mesh = Mesh(rows=2)                          # two ranks, one above the other
    model = decompose(resnet18(), mesh)          # any model, its source untouched
    loss = criterion(model(shard(image, mesh)), label)
    loss.backward()                              # the gradients are those of the undivided image

Read it in this order: `window.py` (interval arithmetic), `mesh.py` (who owns what), `halo.py` (the exchange),
`tensor.py` (how an untouched model meets it), `operators/` (each operation's decomposed form), `decompose.py` (the one
call), `gradients.py` (where plain tensors and images meet, which makes gradients whole) and `pooled.py` (data ranks
behind the pool); `refusals.py` says what is refused and `transports/` carry the bytes. Tile by tile:
`recording.py` (what a model does, written down), `tile.py`, `segment.py` (tiles forward and backward), `workers.py`
(tiles side by side), `stream.py` (the one call), `planning.py` (which tiles fit), `layers.py` and `kept_images.py` (of
which layers, and where norms look at whole images), `costs.py` (what operations cost), `composed.py` and
`statistical.py` (operations made of others), and what saves work: `constant.py`, `fusing.py`.
"""

from gigapipe.spatial import composed, operators  # noqa: F401  register the decomposed forms
from gigapipe.spatial.decompose import decompose, recompose
from gigapipe.spatial.gradients import average_gradients
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.operators.pointwise import pointwise
from gigapipe.spatial.operators.windowed import windowed
from gigapipe.spatial.planning import plan_streaming
from gigapipe.spatial.sharding import gather, shard
from gigapipe.spatial.stream import Plan, stream
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.window import Window

__all__ = [
    "Mesh",
    "NotDecomposed",
    "Plan",
    "SpatialTensor",
    "Window",
    "average_gradients",
    "decompose",
    "decomposes",
    "gather",
    "plan_streaming",
    "pointwise",
    "recompose",
    "shard",
    "stream",
    "windowed",
]
