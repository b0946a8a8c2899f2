"""The training loop: whatever is learnt of whole slides, with one network, at one resolution, for one fold."""

import itertools
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from gigapipe.aside import written_aside
from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.spatial import Mesh
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.cost import Meter
from gigapipe.training.devices import most_allocated
from gigapipe.training.model_files import write_model
from gigapipe.training.optimizer import AdamW
from gigapipe.training.settings import Settings
from gigapipe.training.stopping import Stop, Unfinished
from gigapipe.training.streaming import Streaming

FALLS = 3
"""How often schedule `plateau` lowers the learning rate, and to what share of it."""
FALLS_TO = 0.3

CHECKPOINT_EVERY = 300.0
"""Seconds after which the state is written within an epoch, too."""


class Task(Protocol):
    """What is learnt, and from which slides. All ranks of the mesh call its methods together."""

    settings: Settings
    mesh: Mesh
    model: nn.Module
    """Decomposed over the mesh."""
    streaming: Streaming
    slides: int
    """To train on."""
    started_from: dict | None
    """The `mpp` and `fold` of the coarser model that it began with."""

    def identity(self) -> list:
        """What says, in JSON, which slides there are to train on and to validate on."""

    def backward(self, indices: list[int], epoch: int) -> float:
        """Add the gradient of the mean loss over this data rank's slides, as they look in this epoch; its value."""

    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        """`loss` on the slides to validate on, and other figures; `batches` are those of the epoch that has ended."""


def train(task: Task, output: Path, stop: Stop | None = None, keep: int = 2) -> None:
    """Train, and write `output` (weights of the best epoch in validation) and `training.json` beside it.

    After `patience` epochs without a better validation it ends; with schedule `plateau` it first returns to the best
    weights at a lower learning rate, and the optimiser starts anew, `FALLS` times.

    After every epoch, within long ones, and when it is to `stop`, the state is written into the folder `checkpoints`
    beside `output`, where the last `keep` stay; a run that finds one made with the same settings and slides goes on
    from there, on any mesh. They are removed when the model is whole.

    Raises InputError if the slides do not make whole batches, the loss is no number, or ranks see different files;
    Unfinished if it has stopped. At least one step is made before.
    """
    settings, mesh, model = task.settings, task.mesh, task.model
    if settings.batch % mesh.data:
        raise InputError(f"batch: {settings.batch} slides do not divide over {mesh.data} data ranks; give a multiple")
    together = settings.batch * settings.accumulate
    if task.slides < together:
        raise InputError(f"fold {settings.fold}: {task.slides} training slides do not fill a batch of {together}")
    if settings.schedule == "plateau" and not settings.patience:
        raise InputError("schedule plateau: needs patience, the epochs after which the learning rate falls")
    speak = mesh.rank == 0
    optimizer = AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)

    checkpoints = Checkpoints(Path(output).with_name("checkpoints"), keep)
    identity = json.dumps([asdict(settings), task.identity()], sort_keys=True)
    shape = [mesh.data, mesh.rows, mesh.columns]
    cost = {"mesh": shape, "memory": task.streaming.memory, "seconds": [], "spent": [], "peak_memory_mb": 0.0}
    state = {"epoch": 0, "step": 0, "losses": [], "history": [], "best": {"loss": math.inf}, **cost}
    state |= {"since": 0, "falls": 0, "ended": False}  # `since`: the epoch from which patience counts
    steps = task.slides // together
    if (found := _newest(checkpoints, identity, mesh)) is not None:
        saved = checkpoints.load(found)
        if mesh.everyone.sum_(torch.tensor(float(saved is None))):
            raise InputError(
                f"{checkpoints.folder}: ranks see different files; give the file system time, and run it again"
            )
        state = {key: saved[key] for key in state}
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        as_before = all(state[key] == cost[key] for key in ("mesh", "memory"))
        if not as_before and found < settings.epochs * steps and not state["ended"]:
            state |= cost  # another mesh, another cost
        del saved  # its weights are in the model now
        if speak:
            within = f" and {state['step']} steps" if state["step"] else ""
            print(f"resumed after epoch {state['epoch']} of {settings.epochs}{within}", file=sys.stderr)
    elif speak and checkpoints.exist():
        print(f"{checkpoints.folder}: torn, or of other settings or slides: starting afresh", file=sys.stderr)
        checkpoints.remove()

    def save() -> None:
        parts = {"identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoints.save(state["epoch"] * steps + state["step"], state | parts)

    meter = Meter(mesh)
    longest = {"step": 0.0, "validation": 0.0}  # seconds, in this process
    for epoch in range(state["epoch"], settings.epochs):
        if state["ended"]:
            break
        model.train()
        first, saved_at = state["step"], time.perf_counter()
        batches = itertools.islice(_batches(task, epoch), first, None)
        highest = settings.learning_rate * FALLS_TO ** state["falls"]
        if speak:
            batches = Progress(batches, what=f"epoch {epoch + 1}/{settings.epochs}", unit="steps", total=steps - first)
        for step, parts in enumerate(batches, start=first):
            begun = time.perf_counter()
            mesh.stage = f"step {step + 1} of {steps} of epoch {epoch + 1}"
            meter.start()
            for group in optimizer.param_groups:
                progress = (epoch * steps + step) / (settings.epochs * steps)
                group["lr"] = highest * _schedule(settings.schedule, progress)
            optimizer.zero_grad()
            loss = sum(task.backward(indices, epoch) for indices in parts) / len(parts)
            if len(parts) > 1:
                torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], len(parts))
            loss = mesh.everyone.sum_(torch.tensor(loss, dtype=torch.float64)).item() / mesh.size
            _refuse_divergence(loss, epoch)
            optimizer.step()
            state["losses"].append(loss)
            state["step"] = step + 1
            state["seconds"].append(time.perf_counter() - begun)
            state["spent"].append(meter.spent())
            longest["step"] = max(longest["step"], state["seconds"][-1])
            stopping = _agreed(stop, longest["step" if step + 1 < steps else "validation"], mesh)
            if speak and (stopping or time.perf_counter() - saved_at > CHECKPOINT_EVERY):
                save()
                saved_at = time.perf_counter()
            if stopping:
                raise _unfinished(f"after epoch {epoch} and {step + 1} steps, for {stopping}", mesh)

        begun = time.perf_counter()
        mesh.stage = f"validation after epoch {epoch + 1}"
        found = task.validate(itertools.chain.from_iterable(_batches(task, epoch)))
        longest["validation"] = max(longest["validation"], time.perf_counter() - begun)
        _refuse_divergence(found["loss"], epoch)
        training_loss = statistics.fmean(state["losses"])
        state["peak_memory_mb"] = max(state["peak_memory_mb"], _peak_memory_mb(mesh))
        state |= {"epoch": epoch + 1, "step": 0, "losses": []}
        validation = {f"validation_{name}": value for name, value in found.items()}
        state["history"].append({"epoch": epoch + 1, "training_loss": training_loss, **validation})
        if found["loss"] < state["best"]["loss"]:
            weights = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
            state["best"] = {"loss": found["loss"], "epoch": epoch + 1, "model": weights}
            state["since"] = epoch + 1
        elif settings.patience and epoch + 1 - state["since"] >= settings.patience:
            state["ended"] = settings.schedule != "plateau" or state["falls"] == FALLS
            if not state["ended"]:
                state |= {"since": epoch + 1, "falls": state["falls"] + 1}
                model.load_state_dict(state["best"]["model"])
                optimizer.state.clear()
                if speak:
                    print(f"back to epoch {state['best']['epoch']}, at a lower learning rate", file=sys.stderr)
        if speak:
            print("  ".join(f"{k} {v:.4g}" for k, v in state["history"][-1].items()), file=sys.stderr, flush=True)
            save()
        more = epoch + 1 < settings.epochs and not state["ended"]
        if more and (stopping := _agreed(stop, longest["step"], mesh)):
            raise _unfinished(f"after epoch {epoch + 1}, for {stopping}", mesh)

    if speak:
        write_model(output, state["best"]["model"], settings)
        # The first steps of a process also pay for its warming up.
        seconds = statistics.median(state["seconds"][2:] or state["seconds"])
        sent, joules = (statistics.fmean(of_steps) for of_steps in zip(*state["spent"], strict=True))
        record = {
            "settings": asdict(settings),
            "best_epoch": state["best"]["epoch"],
            "mesh": shape,
            "memory": task.streaming.memory,
            "streamed": task.streaming.tiled,
            "seconds_per_step": seconds,
            "images_per_second": together / seconds,
            "sent_bytes_per_step": sent,
            "joules_per_step": None if math.isnan(joules) else joules,
            "peak_memory_per_rank_mb": state["peak_memory_mb"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_slides": task.slides,
            "slides_per_step": together,
            "started_from": task.started_from,
            "history": state["history"],
        }
        with written_aside(Path(output).with_name("training.json")) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
        checkpoints.remove()


def _batches(task: Task, epoch: int) -> Iterator[list[list[int]]]:
    """Yield, step by step, this rank's slides of each batch that is accumulated; every rank draws the same plan.

    Slides that do not fill a last step wait for another epoch.
    """
    settings, mesh = task.settings, task.mesh
    order = np.random.default_rng([settings.seed, epoch]).permutation(task.slides)
    share, together = settings.batch // mesh.data, settings.batch * settings.accumulate
    for start in range(0, task.slides - together + 1, together):
        firsts = range(start + mesh.data_index * share, start + together, settings.batch)
        yield [order[first : first + share].tolist() for first in firsts]


def _schedule(schedule: str, progress: float, warmup: float = 0.1) -> float:
    """Share of the full learning rate at `progress` (0 to 1) through training.

    Linear warm-up, then a half cosine; `plateau`: all of it, which falls as validation says.
    """
    if progress < warmup:
        return (progress + 0.01) / (warmup + 0.01)
    if schedule == "plateau":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _newest(checkpoints: Checkpoints, identity: str, mesh: Mesh) -> int | None:
    """After how many steps the state is that all ranks go on from: the newest that the first of them sees."""
    found = checkpoints.newest(identity) if mesh.rank == 0 else None
    told = int(mesh.everyone.sum_(torch.tensor([0 if found is None else found + 1])))
    return told - 1 if told else None


def _agreed(stop: Stop | None, seconds: float, mesh: Mesh) -> str | None:
    """Why all ranks stop now, if one of them is to; what follows has taken `seconds` before."""
    told = torch.tensor([bool(stop and stop.signal), bool(stop and stop.late(seconds))], dtype=torch.int32)
    by_signal, by_time = mesh.everyone.sum_(told).tolist()
    return "a signal came" if by_signal else "the time runs out" if by_time else None


def _unfinished(where: str, mesh: Mesh) -> Unfinished:
    if mesh.rank == 0:
        print(f"stopped {where}; the same command goes on from there", file=sys.stderr, flush=True)
    return Unfinished(where)


def _refuse_divergence(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"epoch {epoch + 1}: the loss is {loss}; lower the learning rate")


def _peak_memory_mb(mesh: Mesh) -> float:
    """The largest resident set that any rank's process has had; of ranks on GPUs, the most of those' memory."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peaks = torch.zeros(mesh.size, dtype=torch.float64)
    most = most_allocated(mesh.device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peaks[mesh.rank] = (resident if most is None else most) / 1e6
    return mesh.everyone.sum_(peaks).max().item()
