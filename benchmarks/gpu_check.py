"""What one GPU can say: is it exact there, how fast, in what memory, do the trainer's own steps run. See gpu_check.sh.

    python benchmarks/gpu_check.py PART [--device cuda|cpu] [--small] [--network resnet50]
    torchrun --nproc-per-node 4 benchmarks/gpu_check.py exact     # four ranks on one card, through the host's memory

Parts:
  exact   the decomposed and the streamed step against the undivided one in float64, and that against the CPU's
  speed   a step of plain torch against one decomposed rank, in both precisions and layouts: seconds, memory, kernels
  rank    the rank in the middle of 36 × 8 × 8 at 22,528², whose neighbours send nothing, against its shard undivided
  stream  a whole step at 22,528², tile by tile
  train   the classifier's own steps, and a state that was written on the GPU, read where torch sees none

Each line is one result; the exit status is how many parts of it failed. --small is for trying the check itself.
"""

import argparse
import copy
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from gigapipe.models import RESNETS, GigapixelUNet
from gigapipe.spatial import Mesh, Plan, SpatialTensor, average_gradients, decompose, plan_streaming, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.speed import host_of
from gigapipe.spatial.transports import Alone

TOLERANCE = 1e-9
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
failed = 0


def say(text: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(text, flush=True)


def attempt(name: str, run: Callable[[], object]) -> None:
    """Say what `run` returns, or that it failed; the next one runs anyway."""
    global failed
    try:
        say(f"{name}: {run()}")
    except Exception as error:
        failed += 1
        say(f"{name}: FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()


def make(network: str, norm: str = "batch", pool: str = "average") -> nn.Module:
    torch.manual_seed(0)
    return GigapixelUNet() if network == "unet" else RESNETS[network](2, norm, pool)


def wait() -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        wait()
        begun = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - begun)
    return taken


def cost(run: Callable[[], object], times: int) -> tuple[float, str]:
    """The median of a step's seconds after two, and in words these, its memory, kernels, and how busy they keep it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(run, times)
    median = statistics.median(taken[2:] or taken)
    if device.type != "cuda":
        return median, f"{median:.4f} s a step"
    peak = torch.cuda.max_memory_allocated() / 2**30
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        wait()
    kernels = [e.device_time_total / 1e6 for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(kernels)
    return median, (
        f"{median:.4f} s a step ({min(taken):.4f} to {max(taken[1:] or taken):.4f}), {peak:.2f} GiB, "
        f"{len(kernels)} kernels and copies, which take {busy:.4f} s"
    )


def gradients(model: nn.Module, images: torch.Tensor, where: torch.device) -> dict[str, torch.Tensor]:
    model, images = copy.deepcopy(model).double().to(where), images.to(where)
    found = model(images)
    weights = torch.arange(1, found.numel() + 1, dtype=found.dtype, device=where).view_as(found)
    (found * weights).mean().backward()
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def exact() -> None:
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group("gloo")
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    size = (64, 48) if args.small else (237, 191)
    networks = [("resnet18", "batch", "average"), ("unet", "batch", "average")]
    if not args.small:
        networks += [("resnet18", "group", "max"), ("resnet18", "none", "attention"), ("resnet50", "batch", "average")]

    def against_cpu(network: str) -> str:
        model, images = make(network), torch.rand(2, 3, *size, dtype=torch.float64)
        expected, found = (gradients(model, images, where) for where in (torch.device("cpu"), device))
        worst = max((found[n] - g).abs().max() / g.abs().max() for n, g in expected.items() if g.abs().max() > 0)
        return f"worst gradient {worst:.1e}"

    def decomposed(network: tuple[str, ...], mesh: Mesh, layout: torch.memory_format, plan: Plan | None = None) -> str:
        model = make(*network).to(memory_format=layout)
        images = torch.rand(2 * mesh.data, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        worst = compare(model, images.to(device).contiguous(memory_format=layout), mesh, plan)[0]
        text = f"worst {worst.error:.1e} ({worst.kind} {worst.name})"
        if not worst.error <= TOLERANCE:
            raise ArithmeticError(f"not exact: {text}")
        return text

    if ranks == 1:
        for network in dict.fromkeys(name for name, *_ in networks):
            attempt(f"{network} undivided, against the CPU", lambda network=network: against_cpu(network))
    for shape in {1: [(1, 1, 1)], 2: [(1, 2, 1), (2, 1, 1)], 4: [(1, 2, 2), (2, 1, 2)]}[ranks]:
        mesh = Mesh(*shape)
        of_mesh = f"on {' × '.join(map(str, shape))}"
        for network, (name, layout) in itertools.product(networks, LAYOUTS.items()):
            run = lambda network=network, layout=layout: decomposed(network, mesh, layout)  # noqa: E731, B023
            attempt(f"{' '.join(network)} {name} {of_mesh}", run)
        for network in networks[:2]:
            run = lambda network=network: decomposed(network, mesh, torch.channels_last, Plan(64))  # noqa: E731, B023
            attempt(f"{network[0]} streamed by tiles of 64 px {of_mesh}", run)
        if ranks == 1:
            images = frozenset(range(1, 60))
            plan = Plan(64, kept=images, on_host=images)
            run = lambda plan=plan: decomposed(networks[0], mesh, torch.channels_last, plan)  # noqa: E731, B023
            attempt(f"{networks[0][0]} streamed by tiles of 64 px, all images in the host's memory", run)


def trained(model: nn.Module, image: Callable[[], object], precision: str, mesh: Mesh | None = None) -> Callable:
    """A step: forward, backward, gradients averaged if there is a mesh, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    label = torch.tensor([1], device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(image())
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), label).backward()
        if mesh:
            average_gradients(model.parameters(), mesh)
        optimizer.step()

    return step


def speed() -> None:
    side = 256 if args.small else 4096
    for precision, (name, layout) in itertools.product(("float32", "bfloat16"), LAYOUTS.items()):
        medians = {}
        for kind in ("plain", "decomposed"):

            def run(kind=kind, precision=precision, layout=layout, medians=medians) -> str:
                model = make(args.network).to(device, memory_format=layout)
                image = torch.rand(1, 3, side, side, device=device).contiguous(memory_format=layout)
                if kind == "decomposed":
                    mesh = Mesh()
                    model, image = decompose(model, mesh), SpatialTensor(image, (side, side), mesh)
                medians[kind], text = cost(trained(model, lambda: image, precision), 10)
                return text

            attempt(f"{args.network} {side}², {precision}, {name}, {kind}", run)
        if len(medians) == 2:
            say(f"  decomposed / plain: {medians['decomposed'] / medians['plain']:.2f}")


class Silent:
    """A transport of a large mesh's rank whose neighbours send zeros at once: all that it computes, and no network."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.sent_bytes = rank, size, 0

    def subset(self, ranks) -> "Silent":
        return Silent(list(ranks).index(self.rank), len(ranks))

    def exchange(self, outgoing, incoming) -> Callable[[], None]:
        for _, x in incoming:
            x.zero_()
        return outgoing.clear

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(self.size)


def rank() -> None:
    side, (data, rows, columns) = (1024, (2, 4, 4)) if args.small else (22528, (36, 8, 8))
    middle = (data // 2) * rows * columns + (rows // 2) * columns + columns // 2
    for precision in ("bfloat16", "float32"):

        def run(precision=precision) -> str:
            mesh = Mesh(data, rows, columns, Silent(middle, data * rows * columns))
            shard = torch.rand(1, 3, *mesh.rectangle((side, side)).shape, device=device)
            shard = shard.contiguous(memory_format=torch.channels_last)
            ours, alone = (make(args.network).to(device, memory_format=torch.channels_last) for _ in range(2))
            decompose(ours, Mesh(transport=Alone()))  # whose weights nobody else has
            image = SpatialTensor(shard, (side, side), mesh)
            decomposed, text = cost(trained(ours, lambda: image, precision, mesh), 10)
            undivided, _ = cost(trained(alone, lambda: shard, precision), 10)
            return f"{text}; its shard undivided {undivided:.4f} s, ratio {decomposed / undivided:.2f}"

        attempt(f"{args.network} {side}², rank {middle} of {data} × {rows} × {columns}, {precision}", run)


def streamed() -> None:
    side, memory = (1024, 0.6e9) if args.small else (22528, args.memory)
    shape = (1, 3, side, side)
    tile = torch.rand(1, 3, min(side, 4096), min(side, 4096))

    def read(rectangle) -> torch.Tensor:
        repeats = (-(-n // m) for n, m in zip(rectangle.shape, tile.shape[2:], strict=True))
        part = tile.repeat(1, 1, *repeats)[..., : rectangle.shape[0], : rectangle.shape[1]]
        return part.to(device).contiguous(memory_format=torch.channels_last)

    for precision in ("bfloat16", "float32"):

        def run(precision=precision) -> str:
            mesh = Mesh()
            model = decompose(make(args.network, args.norm).to(device, memory_format=torch.channels_last), mesh)
            weights = 4 * sum(p.nbytes for p in model.parameters())
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                host, line = host_of(device, args.host_memory) if args.host_memory else (None, "")
                plan = plan_streaming(model, shape, memory, mesh, device=device, base=weights, host=host)
            say(f"{line}\n{plan}")
            _, text = cost(trained(model, lambda: stream(read, plan, mesh, shape, device=device), precision), 2)
            return f"{text}; {plan.peak / 2**30:.2f} GiB planned"

        attempt(f"{args.network} {args.norm} {side}² streamed in {memory / 1e9:g} GB, {precision}", run)


def train() -> None:
    from made_slides import Slides

    from gigapipe.training.activation import Mapper
    from gigapipe.training.checkpoints import Checkpoints
    from gigapipe.training.classification import Classification, ClassifierSettings, predict
    from gigapipe.training.streaming import Memory, Streaming

    side, memory = (128, None) if args.small else (1024, Memory(int(4e9)))
    mesh = Mesh()
    mesh.device = device
    for weights, pool, limit in itertools.product(("none", "balanced"), ("average", "attention"), {None, memory}):
        settings = ClassifierSettings(
            mpp=1.0, fold=0, epochs=1, batch=1, learning_rate=1e-4, weight_decay=1e-2, seed=0, precision="bfloat16",
            canvas=side, classes=["a", "b"], pool=pool, class_weights=weights, stain=0.1,
        )  # fmt: skip
        task = Classification(settings, Slides(2, side, mesh), Slides(2, side, mesh), mesh, limit)
        runs = {
            "backward": lambda task=task: task.backward([0], 0),
            "validate": lambda task=task: task.validate(iter([[0], [1]])),
            "predict": lambda t=task, m=limit: predict(t.model, t.settings, t.validation, Streaming(m, mesh)).tolist(),
            "map": lambda t=task, m=limit: [
                found.values.shape
                for found in Mapper(t.model, t.settings).activations(t.validation, Streaming(m, mesh))
            ],
        }
        for name, run in runs.items():
            if name == "map" and pool != "average":
                continue
            attempt(f"{name}, class_weights {weights}, pool {pool}, memory {limit and limit.limit}", run)

    def read_without() -> str:
        with tempfile.TemporaryDirectory() as folder:
            state = {"identity": "it", "model": task.model.state_dict()}
            Checkpoints(folder).save(1, state)
            program = f"from gigapipe.training.checkpoints import *; print(Checkpoints({folder!r}).newest('it'))"
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
            found = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
            return f"the newest is of step {found.strip()}"

    attempt("a state written on this device, read where torch sees no GPU", read_without)


PARTS = {"exact": exact, "speed": speed, "rank": rank, "stream": streamed, "train": train}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--network", default="resnet18", choices=[*RESNETS, "unet"])
    parser.add_argument("--norm", default="batch", help="batch, frozen, group or none: of a streamed step")
    parser.add_argument("--memory", type=float, default=40e9, help="bytes, of a streamed step")
    parser.add_argument("--host-memory", type=int, help="bytes of the host's, for images that do not fit into it")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    PARTS[args.part]()
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(failed)
