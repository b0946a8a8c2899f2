"""One rank against many: is a model's decomposition exact?"""

import contextlib
import copy
import functools
import math
import operator
import os
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from gigapipe.spatial.decompose import decompose, synchronise_as_batch_norm
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.recording import Recorded
from gigapipe.spatial.sharding import gather, shard
from gigapipe.spatial.stream import Plan, stream
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.torch_internals import tree_leaves

TOLERANCE = 1e-10


class Difference(NamedTuple):
    """How far a decomposed quantity is from the undivided one: the largest difference over the largest value."""

    kind: str  # output, gradient, input gradient or statistics
    name: str
    error: float


class _WithoutChance(TorchFunctionMode):
    """Functions that drop out at random drop nothing, and random images are even: torch's cannot be drawn in parts."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in _DROPOUT:
            return args[0] if args else kwargs["input"]
        if function in _DRAWN:
            return torch.full_like(args[0] if args else kwargs["input"], 0.5)
        return function(*args, **(kwargs or {}))


_DROPOUT = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.bernoulli, torch.Tensor.bernoulli,
}  # fmt: skip
_DRAWN = {torch.rand_like, torch.randn_like}


class _Sides:
    """A model undivided, in float64 and training mode, and what every way to run it on the mesh is compared with.

    Dropout is switched off, and what else is drawn at random is the same each time.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, mesh: Mesh, plan: Plan | None):
        self.images, self.mesh, self.plan = images.double(), mesh, plan
        self.undivided = copy.deepcopy(model).double().to(images.device).train()
        self.model = copy.deepcopy(self.undivided)
        synchronise_as_batch_norm(self.undivided)
        share = len(images) // mesh.data
        self.mine = slice(mesh.data_index * share, (mesh.data_index + 1) * share)
        self.whole = self.images.clone().requires_grad_()
        with _model_itself():
            self.expected = tree_leaves(self.run(self.undivided, self.whole))
            generator = torch.Generator().manual_seed(1)
            shapes = [(e.shape, e.dtype, e.device) for e in self.expected]
            self.weights = [torch.randn(n, generator=generator, dtype=t).to(device) for n, t, device in shapes]
            pairs = zip(self.expected, self.weights, strict=True)
            _sum((e * w).sum() for e, w in pairs).div(mesh.data).backward()
        trained = {name: p for name, p in self.undivided.named_parameters() if p.requires_grad}
        self.gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
        self.without = {name for name, p in trained.items() if p.grad is None}

    @staticmethod
    def run(model: Callable, image):
        torch.manual_seed(0)
        with _WithoutChance():
            return model(image)

    def image(self) -> SpatialTensor:
        return shard(self.images[self.mine], self.mesh)

    def outputs(self, model: Callable, image: SpatialTensor) -> list[torch.Tensor | SpatialTensor]:
        found = tree_leaves(self.run(model, stream(image, self.plan) if self.plan else image))
        return [f.computed() if isinstance(f, Recorded) else f for f in found]

    def loss(self, found: list) -> torch.Tensor:
        return _sum((f * w[self.mine]).sum() for f, w in zip(found, self.weights, strict=True))

    def differences(self, kind: str, pairs: Mapping[str, tuple[torch.Tensor | None, torch.Tensor]]) -> list[Difference]:
        """Of what was found from what was expected, on the worst rank. All ranks call it together."""
        # A value that should be zero is rounding alone: it is measured against the others of its kind.
        floor = 1e-3 * max((e.abs().max().item() for _, e in pairs.values() if e.numel()), default=0.0)
        table = torch.zeros(len(pairs), self.mesh.size, 2, dtype=torch.float64, device=self.images.device)
        for row, (f, e) in zip(table, pairs.values(), strict=True):
            # Each rank compares what it holds; the worst of all ranks counts.
            worst = math.inf if f is None else (f - e).abs().max().item() if e.numel() else 0.0
            scale = max(e.abs().max().item() if e.numel() else 0.0, floor)
            row[self.mesh.rank, 0], row[self.mesh.rank, 1] = math.inf if math.isnan(worst) else worst, scale
        worsts, scales = self.mesh.everyone.sum_(table).amax(1).T.tolist() if pairs else ((), ())
        errors = [worst / scale if scale else worst for worst, scale in zip(worsts, scales, strict=True)]
        return [Difference(kind, name, error) for name, error in zip(pairs, errors, strict=True)]

    def of_gradients(self, kind: str, found: dict[str, torch.Tensor | None]) -> list[Difference]:
        lost = {name: e for name, e in self.gradients.items() if name in self.without and found[name] is None}
        return self.differences(kind, {name: (lost.get(name, found[name]), e) for name, e in self.gradients.items()})


def compare(model: nn.Module, images: torch.Tensor, mesh: Mesh, plan: Plan | None = None) -> list[Difference]:
    """Differences between `model` on the mesh and undivided, in float64 and training mode, the largest first.

    `images` (batch, channels, rows, columns) are the same on all ranks; data ranks divide the batch. Each rank also
    computes the undivided model. All outputs, gradients of all parameters and of the input, and all buffers are
    compared. Dropout is switched off, because torch's own cannot be computed in parts. With a `plan` the ranks stream
    their images. All ranks must call it.
    """
    sides = _Sides(model, images, mesh, plan)
    ours, image = decompose(sides.model, mesh), sides.image()
    image.local.requires_grad_()
    found = sides.outputs(ours, image)
    sides.loss(found).backward()

    def together(f, e):
        return (gather(f) if isinstance(f, SpatialTensor) else f).detach(), e[sides.mine].detach()

    outputs = {str(i): together(f, e) for i, (f, e) in enumerate(zip(found, sides.expected, strict=True))}
    rows, columns = (slice(*i) for i in mesh.rectangle(image.image_size))
    gradient, undivided = image.local.grad, sides.whole.grad
    if undivided is None:  # the model makes nothing of the image that has a gradient: neither should ours
        undivided = torch.zeros_like(sides.whole)
        gradient = torch.zeros_like(image.local) if gradient is None else gradient
    of_image = {"": (gradient, undivided[sides.mine, ..., rows, columns])}
    theirs = dict(sides.undivided.named_buffers())
    statistics = {name: (b.double(), theirs[name].double()) for name, b in ours.named_buffers()}
    differences = [
        *sides.differences("output", outputs),
        *sides.differences("input gradient", of_image),
        *sides.of_gradients("gradient", {name: p.grad for name, p in ours.named_parameters()}),
        *sides.differences("statistics", statistics),
    ]
    return sorted(differences, key=lambda d: d.error, reverse=True)


def compare_ways(model: nn.Module, images: torch.Tensor, mesh: Mesh, plan: Plan | None = None) -> list[Difference]:
    """As `compare`, of gradients that are asked for in other ways than by the model's call and `backward`.

    By `torch.autograd.grad`; of the model's parts, called one after another; of a step after one whose backward pass
    failed; and of a copy of the model. All ranks call it together.
    """
    sides = _Sides(model, images, mesh, plan)
    ours = decompose(sides.model, mesh)
    names = list(sides.gradients)

    def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.named_parameters() if name in sides.gradients}

    def stepped(model: nn.Module, call: Callable) -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        sides.loss(sides.outputs(call, sides.image())).backward()
        return {name: p.grad for name, p in parameters(model).items()}

    asked = torch.autograd.grad(
        sides.loss(sides.outputs(ours, sides.image())), list(parameters(ours).values()), allow_unused=True
    )
    differences = sides.of_gradients("autograd.grad", dict(zip(names, asked, strict=True)))
    differences += sides.of_gradients("of its parts", stepped(ours, in_parts(ours)))

    def fail(_):
        raise _Failure

    first = next(iter(parameters(ours).values()), None)
    if first is not None:
        handle = first.register_post_accumulate_grad_hook(fail)
        with contextlib.suppress(_Failure):
            stepped(ours, ours)
        handle.remove()
        differences += sides.of_gradients("after an error", stepped(ours, ours))
    copied = copy.deepcopy(ours)
    differences += sides.of_gradients("of a copy", stepped(copied, copied))
    return sorted(differences, key=lambda d: d.error, reverse=True)


class _Failure(Exception):
    pass


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(operator.add, terms)


def in_parts(model: nn.Module) -> Callable:
    """What the model does, without calling the model itself: its parts where they are known, or else its `forward`."""
    if isinstance(model, nn.Sequential) and len(model) > 1:
        middle = len(model) // 2
        return lambda image: model[middle:](model[:middle](image))
    features, head = getattr(model, "forward_features", None), getattr(model, "forward_head", None)
    if callable(features) and callable(head):
        return lambda image: head(features(image))
    return model.forward


class ModelFailed(Exception):
    """The model itself, undivided, raised an error."""


@contextlib.contextmanager
def _model_itself() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelFailed(f"the model itself, on one rank and undivided: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """What was raised, and where, outside of installed packages if it came by there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and Path(f.filename).parent != Path(__file__).parent]
    frame = (own or frames)[-1]
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}: {said}"


def check(
    make: Callable[[], nn.Module],
    name: str,
    size: tuple[int, int],
    shape: tuple[int, int, int],
    batch: int = 2,
    tile: int | None = None,
    held: bool = True,
) -> list[Difference]:
    """`compare` and `compare_ways` a model called `name` on random images of `size`, on ranks.

    `make` makes the model, on each rank, to which it is pickled. `shape` is the mesh's data, rows and columns; `batch`
    images a data rank. Ranks are started here. With a `tile` they stream their images, by tiles of so many pixels a
    side, and if `held` they hold them, too. Raises RuntimeError with the first rank's message if a rank fails.
    """
    ranks = shape[0] * shape[1] * shape[2]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, make, size, shape, batch, tile, held or not tile)
        # Forks of a process that has imported torch and has no threads: it is imported once for all ranks.
        torch.multiprocessing.set_forkserver_preload([__name__])
        context = torch.multiprocessing.start_processes(
            _rank, arguments, nprocs=ranks, join=False, start_method="forkserver"
        )
        try:
            while not context.join():
                pass
        except Exception as error:
            failed = sorted(Path(folder).glob("failed-*"))
            raise RuntimeError(f"{name}: {failed[0].read_text(encoding='utf-8') if failed else error}") from error
        return [Difference(*row) for row in torch.load(Path(folder, "differences"), weights_only=True)]


def _rank(rank: int, folder: str, make: Callable[[], nn.Module], size, shape, batch: int, tile, held: bool) -> None:
    ranks = shape[0] * shape[1] * shape[2]
    store = dist.FileStore(str(Path(folder, "store")), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=5))
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    try:
        torch.manual_seed(0)
        with _model_itself():
            model = make()
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        images = torch.rand(batch * shape[0], first.in_channels if first else 3, *size, dtype=torch.float64)
        mesh, differences = Mesh(*shape), []
        plans: list[Plan | None] = [None] if held else []
        for plan in [*plans, Plan(tile)] if tile else plans:
            found = [*compare(model, images, mesh, plan), *compare_ways(model, images, mesh, plan)]
            differences += [d._replace(kind=f"streamed, {d.kind}") if plan and held else d for d in found]
    except Exception as error:
        known = isinstance(error, NotImplementedError | ValueError | ModelFailed)
        said = str(error) if known else in_one_line(error)
        Path(folder, f"failed-{rank}").write_text(said, encoding="utf-8")
        raise
    if rank == 0:
        torch.save([tuple(d) for d in differences], Path(folder, "differences"))
    dist.barrier()
    # As a forked child ends. The interpreter's own end would race with gloo's threads, which give back the barrier's
    # tensors to it: now and then they abort the process.
    os._exit(0)
