"""Properties of the exchange and of decomposed networks, on random examples.

Every rank draws the same examples (hypothesis, without randomness of its own), and what one rank finds all are told:
so all fail, and shrink, together.
"""

import warnings

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import MORE
from mpi4py import MPI
from ranks.meshes import WORLD, mesh_of
from torch import nn

from gigapipe.spatial.check import compare
from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.halo_plan import plan
from gigapipe.spatial.window import Bins, Padded, Shuffled, Transposed, Window

meshes = st.sampled_from([(1, 2, 3), (1, 6, 1), (1, 1, 6), (2, 1, 3)]).map(mesh_of)
settings.register_profile(
    "ranks", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)
settings.load_profile("ranks")
examples = 0


def worst_of_ranks(value: float) -> float:
    return WORLD.allreduce(value, MPI.MAX)


windows = st.builds(
    Window,
    kernel=st.integers(1, 6),
    stride=st.integers(1, 4),
    padding=st.tuples(st.integers(-2, 5), st.integers(-2, 5)),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
)


@st.composite
def accesses(draw, size: int):
    """How an operator looks at an axis of `size`: any kind."""
    kinds = [
        windows,
        st.builds(Transposed, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3)),
        st.builds(Bins, st.just(size), st.integers(1, 8)),
        st.builds(Shuffled, st.integers(1, 3)),
        st.builds(Padded, st.just("circular"), st.tuples(st.integers(0, size), st.integers(0, size))),
        st.builds(Padded, st.just("reflect"), st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))),
        st.builds(Padded, st.just("replicate"), st.tuples(st.integers(0, 9), st.integers(0, 9))),
    ]
    access = draw(st.one_of(kinds))
    try:
        access.output_size(size)
    except ValueError:
        access = Window(1)
    return access


def expected_input(whole: torch.Tensor, access, axis: int) -> tuple[torch.Tensor, int]:
    """The whole image with everything outside it that `access` may look at, and where in it the image begins."""
    margin = 3 * whole.shape[axis] + 40
    if isinstance(access, Padded):
        index = torch.arange(-access.padding[0], whole.shape[axis] + access.padding[1])
        n = whole.shape[axis]
        if access.mode == "circular":
            index = index % n
        elif access.mode == "replicate":
            index = index.clamp(0, n - 1)
        else:
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        return whole.index_select(axis, index), access.padding[0]
    pads = [margin, margin, 0, 0] if axis == -1 else [0, 0, margin, margin]
    return F.pad(whole, pads), margin


@given(st.data(), meshes, st.integers(1, 17), st.integers(1, 17))
@settings(max_examples=150 * MORE)
def exchange(data, mesh, rows, columns):
    """Every rank gets what it needs of the image, and the backward pass is the adjoint: ⟨Fx, y⟩ = ⟨x, F*y⟩."""
    global examples
    examples += 1
    axes = data.draw(accesses(rows)), data.draw(accesses(columns))
    whole = torch.rand(1, 2, rows, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    owned = mesh.rectangle((rows, columns))
    x = whole[..., slice(*owned.rows), slice(*owned.columns)].clone().requires_grad_()
    gathered = gather_halo(x, owned, mesh, (rows, columns), axes)
    needed = plan(mesh, (rows, columns), axes).needed
    expected = whole
    if not needed.empty:
        for axis, access, interval in zip((-2, -1), axes, needed, strict=True):
            expected, begin = expected_input(expected, access, axis)
            expected = expected.narrow(axis, begin + interval.start, interval.size)
        wrong = (gathered.detach() - expected).abs().max().item()
    else:
        wrong = float(gathered.numel())
    assert worst_of_ranks(wrong) == 0

    y = torch.rand(gathered.shape, generator=torch.Generator().manual_seed(mesh.rank), dtype=torch.float64)
    (adjoint,) = torch.autograd.grad(gathered, x, y) if gathered.requires_grad else (y,)
    products = torch.stack([(gathered * y).sum(), (x * adjoint).sum()]).detach()
    forward, backward = mesh.everyone.sum_(products).tolist()
    assert abs(forward - backward) <= 1e-12 * max(1, abs(forward))


@st.composite
def layers(draw, channels: int):
    """A layer with as many output channels as inputs, of random window."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    half = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    kind = draw(st.sampled_from(["conv", "conv", "grouped", "transposed", "max", "average", "batch", "group"]))
    if kind in ("conv", "grouped"):
        mode = draw(st.sampled_from(["zeros", "zeros", "replicate"]))
        groups = channels if kind == "grouped" else 1
        return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups, padding_mode=mode)
    if kind == "transposed":
        return nn.ConvTranspose2d(channels, channels, kernel, stride, half, dilation=dilation)
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, half, ceil_mode=draw(st.booleans()))
    if kind == "average":
        return nn.AvgPool2d(kernel, stride, half, draw(st.booleans()), draw(st.booleans()))
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(2, channels)


class Shortcut(nn.Module):
    """Layers, and around them a strided projection to whatever size they give."""

    def __init__(self, *inner):
        super().__init__()
        self.inner = nn.Sequential(*inner)
        self.projection = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.inner(x)
        return y + F.interpolate(self.projection(x), size=y.shape[-2:], mode="nearest")


@given(st.data(), meshes, st.integers(4, 19), st.integers(4, 19))
@settings(max_examples=50 * MORE)
def networks(data, mesh, rows, columns):
    """Two or three random layers, with or without a shortcut, are on the mesh what they are undivided."""
    global examples
    torch.manual_seed(0)
    inner = data.draw(st.lists(layers(4), min_size=2, max_size=3))
    model = Shortcut(*inner) if data.draw(st.booleans()) else nn.Sequential(*inner)
    images = torch.rand(mesh.data * 2, 4, rows, columns, dtype=torch.float64) - 0.5
    try:
        undivided = model.double()(images)
    except (RuntimeError, ValueError):  # an image too small for the layers
        return
    if undivided.numel() == 0 or undivided.abs().max() > 1e6 or undivided.abs().max() < 1e-6:
        return  # BatchNorm of next to nothing amplifies rounding
    examples += 1
    worst = compare(model, images, mesh)[0]
    assert worst_of_ranks(worst.error) <= 1e-9, (worst, model, mesh, images.shape)


def run(mesh, of: str) -> int:
    """Of how many examples the property is true; an exception of hypothesis says for which it is not."""
    global examples
    examples = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        {"exchange": exchange, "networks": networks}[of]()
    return examples
