"""How memory grows with the image, at one size of tiles: ResNet-18, batch 1, bfloat16, frozen BatchNorm, read by tiles.

    python benchmarks/growth.py [--sizes 4096 8192 12288] [--tile 1024]

Each size in a process of its own, one training step. Kept between segments are the outputs of the first blocks of
layers 2, 3 and 4. Prints the most memory above what the process had before the step, and how much it grows from line to
line, beside what the image (float32) and the kept outputs take.
"""

import argparse
import json
import subprocess
import sys

from streaming import memory

from gigapipe.allocator import return_freed_tensors

KEPT = ("layer2.0.relu", "layer3.0.relu", "layer4.0.relu")
CHANNELS_AND_STRIDES = ((128, 8), (256, 16), (512, 32))


def worker(size: int, tile: int) -> None:
    return_freed_tensors()
    import torch
    import torch.nn.functional as F

    from gigapipe.models import resnet18
    from gigapipe.spatial import Mesh, Plan, decompose, stream
    from gigapipe.spatial.planning import trace

    torch.manual_seed(0)
    model = decompose(resnet18(2, "frozen").to(memory_format=torch.channels_last), Mesh())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    pixels = torch.rand(1, 3, 2048, 2048).contiguous(memory_format=torch.channels_last)

    def read(rectangle):
        rows, columns = (torch.arange(*interval) % 2048 for interval in rectangle)
        return pixels[:, :, rows][..., columns]

    with torch.autocast("cpu", torch.bfloat16):
        nodes = trace(model, (1, 3, size, size), Mesh(), None, torch.float32, "cpu")
        # Of a block's two activations, which are one layer, the second.
        kept = frozenset(max(n.index for n in nodes if n.layer == layer) for layer in KEPT)
        before = memory("VmRSS")
        image = stream(read, Plan(tile=tile, kept=kept), Mesh(), (1, 3, size, size))
        loss = F.cross_entropy(model(image).float(), torch.tensor([1]))
    loss.backward()
    optimizer.step()
    print(json.dumps({"peak": memory("VmHWM") - before, "loss": loss.item()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 12288])
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.sizes[0], args.tile)
        sys.exit()
    print(f"tiles of {args.tile} px of the image\n\n   size   peak, MB   grows by   image and outputs, MB   grow by")
    peak = held = None
    for size in args.sizes:
        command = [sys.executable, __file__, "--worker", "--sizes", str(size), "--tile", str(args.tile)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        outputs = sum(2 * channels * (size / stride) ** 2 for channels, stride in CHANNELS_AND_STRIDES)
        before, peak, held_before, held = peak, found["peak"] / 1e6, held, (3 * 4 * size**2 + outputs) / 1e6
        grown = "" if before is None else f"{peak - before:9.0f}  {held:22.0f} {held - held_before:9.0f}"
        print(f"{size:7} {peak:10.0f}  {grown or f'{held:32.0f}'}", flush=True)
