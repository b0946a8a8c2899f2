"""On a GPU: is it exact there, and what does decomposing cost? Run by gpu_check.sh, on 1 rank, and on 2 on one card."""

import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

from gigapipe.models import resnet18
from gigapipe.spatial import Mesh, SpatialTensor, decompose
from gigapipe.spatial.check import compare

torch.manual_seed(0)
if "MASTER_ADDR" in os.environ:
    dist.init_process_group("gloo")
mesh = Mesh(rows=dist.get_world_size() if dist.is_initialized() else 1)
card = torch.device("cuda", 0)


def say(text: str) -> None:
    if mesh.rank == 0:
        print(text, flush=True)


say(f"{torch.cuda.get_device_name(card)}, torch {torch.__version__}, {mesh.size} rank(s)")
for size in [(101, 77), (40, 33), (512, 384)]:
    worst = compare(resnet18(2), torch.rand(2, 3, *size, dtype=torch.float64, device=card), mesh)[0]
    say(f"ResNet-18 {size}, float64: worst {worst.error:.1e} ({worst.kind} {worst.name})")
    if not worst.error <= 1e-10:
        sys.exit(f"not exact on {card}")


def seconds(run, times: int) -> float:
    taken = []
    for _ in range(times):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[2:])


size = 4096
models = {"plain": resnet18(2).to(card), "ours": resnet18(2).to(card)}
decompose(models["ours"], mesh)
rows, columns = mesh.rectangle((size, size))
inputs = {
    "plain": torch.rand(1, 3, size, size, device=card),
    "ours": SpatialTensor(torch.rand(1, 3, rows.size, columns.size, device=card), (size, size), mesh),
}
label = torch.tensor([1], device=card)
for precision in (torch.float32, torch.bfloat16):
    taken, peak = {}, {}
    for name, model in models.items():
        if name == "plain" and mesh.size > 1:
            continue

        def step(model=model, image=inputs[name], precision=precision):
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = F.cross_entropy(model(image).float(), label)
            model.zero_grad()
            loss.backward()

        torch.cuda.reset_peak_memory_stats()
        taken[name], peak[name] = seconds(step, 10), torch.cuda.max_memory_allocated() / 2**30
        say(f"ResNet-18 {size}², {precision}, {name}: {taken[name]:.3f} s a step, {peak[name]:.1f} GiB")
    if len(taken) == 2:
        say(f"  ours / plain: time {taken['ours'] / taken['plain']:.2f}, memory {peak['ours'] / peak['plain']:.2f}")
if dist.is_initialized():
    dist.destroy_process_group()
