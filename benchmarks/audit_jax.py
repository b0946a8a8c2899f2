"""The audit's cases in JAX: `jit`, with rows and columns sharded over devices that XLA makes of one CPU."""

import contextlib
import functools
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[4]}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_TRACEBACK_FILTERING"] = "off"  # for the line that raised

import jax
import jax.numpy as jnp
import numpy as np
from audit_cases import Case, Layer
from audit_reports import Found, report
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def apply(layers: list[Layer], weights: dict[str, jax.Array], x: jax.Array, prefix: str = "", look=None) -> jax.Array:
    """What torch's nn.Sequential of these layers makes of x; `look(i, x)` sees what each makes."""
    for i, (kind, a) in enumerate(layers):
        name = f"{prefix}{i}."
        weight, bias = weights.get(f"{name}weight"), weights.get(f"{name}bias")
        match kind:
            case "Conv2d":
                padding = [(p, p) for p in a["padding"]]
                x = lax.conv_general_dilated(
                    x, weight, a["stride"], padding, rhs_dilation=a["dilation"], feature_group_count=a["groups"]
                )
                x = x if bias is None else x + bias[:, None, None]
            case "BatchNorm2d":
                x = normalised(x, (0, 2, 3)) * weight[:, None, None] + bias[:, None, None]
            case "GroupNorm":
                groups = x.reshape(x.shape[0], a["num_groups"], -1, *x.shape[2:])
                x = normalised(groups, (2, 3, 4)).reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
            case "ReLU":
                x = jax.nn.relu(x)
            case "MaxPool2d":
                x = lax.reduce_window(x, -jnp.inf, lax.max, *windows(a))
            case "AvgPool2d":
                x = lax.reduce_window(x, 0.0, lax.add, *windows(a)) / np.prod(a["kernel_size"])
            case "Upsample":
                size = [n * a["scale_factor"] for n in x.shape[2:]]
                x = jax.image.resize(x, (*x.shape[:2], *size), a["mode"])
            case "Shortcut":
                beside = apply(a["beside"], weights, x, f"{name}beside.")
                x = jax.nn.relu(apply(a["body"], weights, x, f"{name}body.") + beside)
            case "AdaptiveAvgPool2d":
                x = x.mean((2, 3), keepdims=True)
            case "Flatten":
                x = x.reshape(x.shape[0], -1)
            case "Linear":
                x = x @ weight.T + bias
            case _:
                raise NotImplementedError(kind)
        if look:
            look(i, x)
    return x


def normalised(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return (x - x.mean(axes, keepdims=True)) * lax.rsqrt(x.var(axes, keepdims=True) + 1e-5)


def windows(a: dict) -> tuple:
    return (1, 1, *a["kernel_size"]), (1, 1, *a["stride"]), [(0, 0), (0, 0), *((p, p) for p in a["padding"])]


def sharded(case: Case) -> tuple[Found, list[str]]:
    """Images sharded over rows and columns, and so the target where its sides allow; weights replicated."""
    mesh = Mesh(np.array(jax.devices()).reshape(case.mesh), ("rows", "columns"))
    whole = []

    def placed(name: str, array: np.ndarray) -> jax.Array:
        even = array.ndim == 4 and all(n % parts == 0 for n, parts in zip(array.shape[2:], case.mesh, strict=True))
        divided = name == "image" or (name == "target" and even)
        return jax.device_put(array, NamedSharding(mesh, P(None, None, "rows", "columns") if divided else P()))

    def look(layer: int, x: jax.Array) -> None:
        def see(sharding) -> None:
            by = (*sharding.spec, *[None] * 4)
            whole.extend(case.left_whole(layer, [by[axis] is None for axis in (2, 3)]))

        if x.ndim == 4:
            jax.debug.inspect_array_sharding(x, callback=see)

    def loss(weights, image, target, look=None):
        return jnp.square(apply(case.layers, weights, image, look=look) - target).mean()

    weights = {name: placed(name, array) for name, array in case.arrays().items()}
    inputs = weights, weights.pop("image"), weights.pop("target")
    value, (gradients, of_image) = jax.jit(jax.value_and_grad(loss, (0, 1)))(*inputs)
    watched = jax.jit(jax.value_and_grad(functools.partial(loss, look=look), (0, 1))).lower(*inputs)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # it cannot tell of maps over some of an axis' devices
        watched.compile()
    # By itself, for XLA returns what it divided unevenly whole on every device, and would have to in the step.
    output = jax.jit(lambda weights, image: apply(case.layers, weights, image))(*inputs[:2])
    everything = {"loss": value, "output": output, "image": of_image, **gradients}
    return {name: np.asarray(x) for name, x in everything.items()}, whole


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    report(sharded, Path(sys.argv[2]), 0)
