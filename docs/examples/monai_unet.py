"""A U-Net of MONAI on one image of 4,000 × 4,000 px, divided over two ranks.

    torchrun --nproc-per-node 2 docs/examples/monai_unet.py
    torchrun --nproc-per-node 2 docs/examples/monai_unet.py --size 248 --compare

No rank ever has the whole image: each makes (here) or reads (of yours) the rectangle that it owns. The network is
MONAI's own, and its loss and gradients are those of the undivided image; `--compare` computes those, too, in float64.
"""

import argparse
import resource
import time

import torch
import torch.distributed as dist
from monai.networks.nets import UNet
from torch.nn.functional import binary_cross_entropy_with_logits

from gigapipe.spatial import Mesh, SpatialTensor, decompose


def nuclei(rows: tuple[int, int], columns: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A rectangle of an image (1, 3, rows, columns) of discs, and of its mask (1, 1, rows, columns), in float64.

    Replace this by what reads the same rectangle of your image, from a Zarr array or a slide.
    """
    y, x = torch.arange(*rows)[:, None], torch.arange(*columns)[None, :]
    mask = ((y % 50 - 25) ** 2 + (x % 50 - 25) ** 2 < 12**2) & ((y // 50 + x // 50) % 3 > 0)
    stain = 0.3 + 0.1 * torch.sin(y / 40) * torch.cos(x / 60)
    return torch.stack([stain + share * mask for share in (0.4, 0.6, 0.2)])[None].double(), mask[None, None].double()


def gradients(model: torch.nn.Module, image, mask) -> tuple[float, list[torch.Tensor]]:
    """The loss, and the gradient of each parameter."""
    model.zero_grad()
    loss = binary_cross_entropy_with_logits(model(image), mask)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=4000, help="rows and columns of the image, a multiple of 8")
    parser.add_argument("--compare", action="store_true", help="compare with the undivided image, on rank 0")
    args = parser.parse_args()
    dist.init_process_group("gloo")  # "nccl" between GPUs

    torch.manual_seed(0)
    net = UNet(spatial_dims=2, in_channels=3, out_channels=1, channels=(8, 16, 32, 64), strides=(2, 2, 2))
    dtype = torch.float64 if args.compare else torch.float32
    net = net.to(dtype)

    mesh = Mesh(rows=dist.get_world_size())  # one rank above the other
    model = decompose(net, mesh)  # the same layers with the same parameters
    size = (args.size, args.size)
    image, mask = (SpatialTensor(part.to(dtype), size, mesh) for part in nuclei(*mesh.rectangle(size)))
    start = time.perf_counter()
    loss, found = gradients(model, image, mask)
    took, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"rank {mesh.rank}: {tuple(image.local.shape[2:])} px of {size}, loss {loss:.6f}, {took:.1f} s, {memory:.1f} GB"
    )

    if args.compare and mesh.rank == 0:
        whole, expected = gradients(net, *nuclei((0, args.size), (0, args.size)))
        scale = max(gradient.abs().max() for gradient in expected)
        worst = max((a - b).abs().max() for a, b in zip(found, expected, strict=True)) / scale
        print(f"undivided: loss {whole:.6f}; gradients differ by at most {worst.item():.1e} of the largest")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
