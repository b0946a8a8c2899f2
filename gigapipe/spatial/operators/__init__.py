"""The decomposed form of each torch operation: what a rank computes on its shard, and what it needs from others.

Importing this package registers all of them in `tensor.DECOMPOSED`. On a single rank torch's own functions are used, so
that it has no additional cost.
"""

from gigapipe.spatial.operators import (  # noqa: F401
    contraction,
    convolution,
    differentiation,
    dropout,
    indexing,
    losses,
    max_pooling,
    normalisation,
    pointwise,
    pooling,
    reductions,
    resampling,
    reshaping,
    shaping,
    unpooling,
)
