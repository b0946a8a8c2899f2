"""What one rank would need to compute an image tile by tile that no mesh holds."""

from gigapipe.errors import InputError
from gigapipe.planning.machines import Machine
from gigapipe.planning.scaling import Job, undivided_seconds
from gigapipe.spatial.speed import CPU, Speed


def streamed(job: Job, machine: Machine) -> list[str]:
    """Lines that say how one rank streams one image of the job, in how much memory and time; or what it would need.

    Running statistics of BatchNorm are taken as frozen. Slow: every way through the layers is looked at.
    """
    import torch
    from torch import nn

    from gigapipe.models.layout import in_channels_last
    from gigapipe.spatial import Mesh, decompose, plan_streaming
    from gigapipe.spatial.costs import trained_bytes, training_state

    model = decompose(in_channels_last(job.make()), Mesh())  # which names the layers
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    state = trained_bytes(model) + training_state(model)  # buffers and weights that are not trained are left out
    dtype = getattr(torch, job.precision)
    frozen = "; with frozen BatchNorm, for in training each would need another pass over all layers before it"
    try:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            shape = 1, job.channels, *job.canvas
            # By one thread: how many the machine's rank has, and what tiles side by side are worth there, nobody knows.
            plan = plan_streaming(
                model, shape, machine.usable_memory, loss=job.loss, base=state, threads=1, speed=_speed(job, machine)
            )
    except NotImplementedError as error:
        raise InputError(f"it cannot be streamed: {error}") from None
    except ValueError as error:
        return [f"streamed on one rank (docs/streaming.md): {error}"]
    assert plan.peak is not None and plan.time is not None  # as of what was planned
    seconds = plan.time * undivided_seconds(job, machine, 1)
    return [
        f"streamed on one rank (docs/streaming.md): at most {plan.peak / 1e9:.1f} GB, {seconds:.4g} s an image, "
        f"{plan.time:.2f} × the time of an undivided step{frozen if norms else ''}:",
        *(f"  {line}" for line in plan.lines[:-1]),
    ]


def _speed(job: Job, machine: Machine) -> Speed:
    """The machine's, by which tiles are chosen; of a CPU that by which a training there chooses them."""
    if not machine.has_gpus:
        return CPU
    of_32, of_job = (machine.flops_share * machine.flops[p] / 2 for p in ("float32", job.precision))
    return Speed(1 / of_32, of_job / of_32, 1 / (machine.bandwidth_share * machine.bandwidth), machine.operation)
