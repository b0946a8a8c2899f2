"""The decomposed form of each torch operation: what a rank does to its shard, and what it must be told by others.

Importing this package registers them all in `tensor.DECOMPOSED`. Where an image is not divided torch's own function
runs as it is, so one rank costs nothing.
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
