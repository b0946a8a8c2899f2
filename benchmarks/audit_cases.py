"""The audit's cases: small networks as torch writes them, with their weights and images, drawn at random.

Needs numpy alone, for interpreters without torch read it too.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MESHES = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (1, 4), (4, 1)]
MOST_LAYERS = 6  # before the classifier; a shortcut counts as one
SIDES = range(12, 65)  # of images, px


class Layer(NamedTuple):
    """A layer by its class in torch.nn and its arguments.

    A Shortcut, which torch has not, is `relu(body(x) + beside(x))`, both lists of layers; nothing beside is x itself.
    """

    kind: str
    arguments: dict

    def __repr__(self) -> str:
        words = []
        for name, value in self.arguments.items():
            if value == DEFAULTS.get(name) and not (name == "stride" and "Pool" in self.kind):  # that is the kernel's
                continue
            if isinstance(value, tuple) and len(set(value)) == 1:
                value = value[0]
            words.append(f"{value}" if name in FIRST else f"{name}={value!r}")
        return f"{self.kind}({', '.join(words)})"


FIRST = {"in_channels", "out_channels", "kernel_size", "num_features", "in_features", "out_features", "body"}
"""Arguments that are written without their names."""
DEFAULTS = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": True, "beside": []}


@dataclass(frozen=True)
class Case:
    """A network, the batch of images (batch, 3, rows, columns) that it gets, and the mesh (rows, columns) it is on."""

    layers: list[Layer]
    batch: int
    size: tuple[int, int]
    mesh: tuple[int, int]
    seed: int
    name: str = ""

    def __str__(self) -> str:
        name = f"{self.name}: " * bool(self.name)
        size, mesh = (" × ".join(map(str, pair)) for pair in (self.size, self.mesh))
        return f"{name}{size} px over {mesh}, batch {self.batch}, seed {self.seed}: {self.layers}"

    @property
    def ranks(self) -> int:
        return math.prod(self.mesh)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the image and what each layer makes of it, (batch, channels, rows, columns) or (batch, channels)."""
        return [(self.batch, *shape) for shape in shapes(self.layers, (3, *self.size))]

    def left_whole(self, layer: int, whole: tuple[bool, bool]) -> list[str]:
        """What is to be said if a rank has all rows, all columns of a layer's output: where others could have some."""
        size = self.shapes[layer + 1][2:]  # of no length behind the pool
        axes = zip(size, self.mesh, whole, ("rows", "columns"), strict=len(size) == 2)
        kind = self.layers[layer].kind
        return [f"all {n} {axis} of layer {layer}, {kind}" for n, parts, all_, axis in axes if all_ and 1 < parts <= n]

    def arrays(self) -> dict[str, np.ndarray]:
        """`image`, `target`, and the weights by their names in a state_dict; float64, the same wherever it is asked."""
        draw = np.random.RandomState(self.seed).standard_normal  # whose stream numpy keeps for good
        found = {"image": draw(self.shapes[0]), "target": draw(self.shapes[-1])}
        for name, shape in parameters(self.layers):
            found[name] = draw(shape) / (np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 4)
            if len(shape) == 1 and name.endswith("weight"):  # a norm's
                found[name] += 1
        return found


def parameters(layers: list[Layer], prefix: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of weights, as an nn.Sequential of these layers has them."""
    for i, (kind, a) in enumerate(layers):
        name = f"{prefix}{i}."
        match kind:
            case "Conv2d":
                yield f"{name}weight", (a["out_channels"], a["in_channels"] // a["groups"], *a["kernel_size"])
                if a["bias"]:
                    yield f"{name}bias", (a["out_channels"],)
            case "BatchNorm2d" | "GroupNorm":
                channels = a.get("num_features") or a["num_channels"]
                yield f"{name}weight", (channels,)
                yield f"{name}bias", (channels,)
            case "Linear":
                yield f"{name}weight", (a["out_features"], a["in_features"])
                yield f"{name}bias", (a["out_features"],)
            case "Shortcut":
                yield from parameters(a["body"], f"{name}body.")
                yield from parameters(a["beside"], f"{name}beside.")


def shapes(layers: list[Layer], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """`shape` and what each layer makes of it, (channels, rows, columns) or (channels,)."""
    found = [shape]
    for kind, a in layers:
        channels, *size = found[-1]
        match kind:
            case "Conv2d" | "MaxPool2d" | "AvgPool2d":
                windows = zip(size, a["kernel_size"], a["stride"], a["padding"], a.get("dilation", (1, 1)), strict=True)
                size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in windows]
                channels = a.get("out_channels", channels)
            case "Upsample":
                size = [n * a["scale_factor"] for n in size]
            case "Shortcut":
                channels, *size = shapes(a["body"], found[-1])[-1]
            case "AdaptiveAvgPool2d":
                size = [1, 1]
            case "Flatten":
                size = []
            case "Linear":
                channels = a["out_features"]
        found.append((channels, *size))
    return found


def convolution(channels: int, out: int, kernel, stride=1, padding=0, dilation=1, groups=1, bias=True) -> Layer:
    pairs = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    pairs = {name: (value, value) if isinstance(value, int) else value for name, value in pairs.items()}
    return Layer("Conv2d", {"in_channels": channels, "out_channels": out, **pairs, "groups": groups, "bias": bias})


def pool(kind: str, kernel: int, stride: int, padding: int) -> Layer:
    return Layer(kind, {"kernel_size": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding)})


def batch_norm(channels: int) -> Layer:
    return Layer("BatchNorm2d", {"num_features": channels})


def shortcut(channels: int, out: int, stride: int) -> Layer:
    """ResNet's basic block."""
    body = [convolution(channels, out, 3, stride, 1, bias=False), batch_norm(out), Layer("ReLU", {})]
    body += [convolution(out, out, 3, 1, 1, bias=False), batch_norm(out)]
    projected = [convolution(channels, out, 1, stride, bias=False), batch_norm(out)]
    return Layer("Shortcut", {"body": body, "beside": projected if (channels, stride) != (out, 1) else []})


def classifier(channels: int) -> list[Layer]:
    """Its ReLU is there because the mean of what a norm gives does not depend on the image."""
    linear = Layer("Linear", {"in_features": channels, "out_features": 3})
    return [Layer("ReLU", {}), Layer("AdaptiveAvgPool2d", {"output_size": 1}), Layer("Flatten", {}), linear]


def draw_layer(rng: random.Random, channels: int) -> Layer:
    """A layer for an image of so many channels, at random."""
    kinds = {"Conv2d": 8, "BatchNorm2d": 2, "GroupNorm": 1, "ReLU": 3, "MaxPool2d": 2, "AvgPool2d": 1}
    kinds |= {"Upsample": 1, "Shortcut": 3}
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    match kind:
        case "Conv2d":
            kernel = rng.choices([1, 2, 3, 4, 5, 7], [2, 1, 6, 1, 2, 1])[0]
            dilation = rng.choices([1, 2], [4, 1])[0]
            padding = rng.choices([dilation * (kernel - 1) // 2, rng.randrange(kernel)], [3, 1])[0]
            out = rng.choice([2, 4, 6, 8])
            groups = rng.choice([1, 1, 1, math.gcd(channels, out)])
            stride = rng.choices([1, 2, 3], [4, 3, 1])[0]
            if rng.random() < 0.15:  # other numbers for rows than for columns
                kernel, stride, padding = (kernel, 1), (stride, 1), (padding, 0)
            return convolution(channels, out, kernel, stride, padding, dilation, groups, rng.random() < 0.7)
        case "BatchNorm2d":
            return batch_norm(channels)
        case "GroupNorm":
            return Layer(kind, {"num_groups": rng.choice([1, math.gcd(channels, 2)]), "num_channels": channels})
        case "MaxPool2d" | "AvgPool2d":
            return pool(kind, *rng.choice([(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0), (2, 1, 0)]))
        case "Upsample":
            return Layer(kind, {"scale_factor": 2, "mode": rng.choice(["nearest", "bilinear"])})
        case "Shortcut":
            stride = rng.choice([1, 2])
            return shortcut(channels, channels if stride == 1 and rng.random() < 0.7 else rng.choice([4, 8]), stride)
    return Layer(kind, {})


def draw(seed: int) -> Case:
    """A case at random: a convolution, up to five layers more, and in half of the cases a classifier.

    Half of the images have sides that the mesh divides: some libraries take no others.
    """
    rng = random.Random(seed)
    mesh = rng.choice(MESHES)
    size = [rng.choice(SIDES) for _ in mesh]
    if rng.random() < 0.5:
        size = [-(-n // parts) * parts for n, parts in zip(size, mesh, strict=True)]
    image, layers = (3, *size), []
    most = rng.randint(1, MOST_LAYERS)
    while len(layers) < most:
        layer = draw_layer(rng, shapes(layers, image)[-1][0])
        # A norm over too few values would make errors of rounding.
        if (layers or layer.kind == "Conv2d") and min(shapes([*layers, layer], image)[-1][1:]) >= 2:
            layers.append(layer)
    if rng.random() < 0.5:
        layers += classifier(shapes(layers, image)[-1][0])
    return Case(layers, rng.choice([1, 2]), tuple(size), mesh, seed)


def doubled() -> Case:
    """ResNet's beginning at 250 × 204 on 2 × 2, of which XLA doubles weight gradients."""
    stem = [convolution(3, 8, 7, 2, 3, bias=False), batch_norm(8), Layer("ReLU", {}), pool("MaxPool2d", 3, 2, 1)]
    layers = [*stem, shortcut(8, 8, 1), shortcut(8, 16, 2), *classifier(16)[1:]]
    return Case(layers, 1, (250, 204), (2, 2), 0, "ResNet's beginning")


def cases(count: int, seed: int) -> list[Case]:
    """So many cases, the named one first."""
    return [doubled(), *(draw(seed + i) for i in range(1, count))]
