"""Any image over any number of ranks, with the gradients of the undivided image. Depends on torch alone.

Read it in this order: `window.py` (interval arithmetic), `mesh.py` (who owns what), `halo.py` (the exchange),
`tensor.py` (how an untouched model meets it), `operators.py` and `norm.py` (each operation's decomposed form),
`gradients.py` (the one all-reduce after the backward pass).
"""

from gigapipe.spatial.gradients import average_gradients
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.tensor import SpatialTensor

__all__ = ["Mesh", "SpatialTensor", "average_gradients"]
