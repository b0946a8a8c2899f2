"""Images of any size on any number of ranks, with the gradients of the undivided image. Depends on torch only.

    mesh = Mesh(rows=2)                          # two ranks, one above the other
    model = decompose(resnet18(), mesh)          # any model, its source unchanged
    loss = criterion(model(shard(image, mesh)), label)
    loss.backward()                              # the gradients are those of the undivided image

Reading order: `window.py` (interval arithmetic), `mesh.py` (which rank owns what), `halo.py` (the exchange),
`tensor.py` (how an unchanged model is applied), `operators/` (the decomposed form of each operation), `decompose.py`
(the one call), `gradients.py` (complete gradients where plain tensors and images meet), `late.py` (the same in fewer
messages), `pooled.py` (data ranks after pooling), `refusals.py` (what is refused) and `transports/` (data between
ranks). Streaming: `recording.py` (records a model's operations), `tile.py`, `segment.py` and `streamed.py` (tiles
forward and backward), `workers.py` (parallel tiles), `reading_ahead.py` (what tiles need is read before), `stream.py`
(the one call), `planning.py` (which tiles fit), `layers.py` and `kept_images.py` (which layers, and where norms need
whole images), `costs.py` and `speed.py` (the cost of operations), `composed.py` and `statistical.py` (operations
composed of others), and `constant.py`, `fusing.py` and `blocks.py`, which save work.
"""

from gigapipe.spatial import composed, operators  # noqa: F401  register the decomposed forms
from gigapipe.spatial.decompose import decompose, recompose
from gigapipe.spatial.gradients import average_gradients
from gigapipe.spatial.late import late_gradients
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
    "late_gradients",
    "plan_streaming",
    "pointwise",
    "recompose",
    "shard",
    "stream",
    "windowed",
]
