"""The training loop: whatever is learnt of whole slides, with one network, at one resolution, for one fold."""

import itertools
import json
import math
import resource
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from gigapipe.aside import written_aside
from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.spatial import Mesh, decompose
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.cost import Meter
from gigapipe.training.stopping import Stop, Unfinished
from gigapipe.training.streaming import Streaming

CHECKPOINT_EVERY = 300.0
"""Seconds after which the state is written within an epoch, too."""


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """What determines the trained weights, beside the slides. Written into the model and its checkpoint."""

    task: ClassVar[str]
    """What is learnt, in a word."""

    mpp: float
    fold: int
    epochs: int
    batch: int  # slides a step, over all data ranks
    learning_rate: float
    weight_decay: float
    seed: int
    precision: str = "float32"  # of activations; "bfloat16" by autocast, the weights stay float32

    def autocast(self) -> torch.autocast:
        device = "cuda" if torch.cuda.is_available() else "cpu"  # as `device_of` chooses
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")

    @abstractmethod
    def model(self) -> nn.Module:
        """An untrained network."""


class Task(Protocol):
    """What is learnt, and from which slides. All ranks of the mesh call its methods together."""

    settings: Settings
    mesh: Mesh
    model: nn.Module
    """Decomposed over the mesh."""
    streaming: Streaming
    slides: int
    """To train on."""

    def identity(self) -> list:
        """What says, in JSON, which slides there are to train on and to validate on."""

    def backward(self, indices: list[int], symmetries: list[int]) -> float:
        """Add the gradient of the mean loss over this data rank's slides; its value."""

    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        """`loss` on the slides to validate on, and other figures; `batches` are those of the epoch that has ended."""


def train(task: Task, output: Path, stop: Stop | None = None, keep: int = 2) -> None:
    """Train, and write `output` (weights of the best epoch in validation) and `training.json` beside it.

    After every epoch, within long ones, and when it is to `stop`, the state is written into the folder `checkpoints`
    beside `output`, where the last `keep` stay; a run that finds one made with the same settings and slides goes on
    from there, on any mesh. They are removed when the model is whole.

    Raises InputError if the slides do not make whole batches, the loss is no number, or ranks see different files;
    Unfinished if it has stopped. At least one step is made before.
    """
    settings, mesh, model = task.settings, task.mesh, task.model
    if settings.batch % mesh.data:
        raise InputError(f"batch: {settings.batch} slides do not divide over {mesh.data} data ranks; give a multiple")
    if task.slides < settings.batch:
        raise InputError(f"fold {settings.fold}: {task.slides} training slides do not fill a batch of {settings.batch}")
    speak = mesh.rank == 0
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )

    checkpoints = Checkpoints(Path(output).with_name("checkpoints"), keep)
    identity = json.dumps([asdict(settings), task.identity()], sort_keys=True)
    shape = [mesh.data, mesh.rows, mesh.columns]
    cost = {"mesh": shape, "memory": task.streaming.memory, "seconds": [], "spent": [], "peak_memory_mb": 0.0}
    state = {"epoch": 0, "step": 0, "losses": [], "history": [], "best": {"loss": math.inf}, **cost}
    steps = task.slides // settings.batch
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
        if not as_before and found < settings.epochs * steps:
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
        model.train()
        first, saved_at = state["step"], time.perf_counter()
        batches = itertools.islice(_batches(task, epoch), first, None)
        if speak:
            batches = Progress(batches, what=f"epoch {epoch + 1}/{settings.epochs}", unit="steps", total=steps - first)
        for step, (indices, symmetries) in enumerate(batches, start=first):
            begun = time.perf_counter()
            mesh.stage = f"step {step + 1} of {steps} of epoch {epoch + 1}"
            meter.start()
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule((epoch * steps + step) / (settings.epochs * steps))
            optimizer.zero_grad()
            loss = task.backward(indices, symmetries)
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
        found = task.validate(indices for indices, _ in _batches(task, epoch))
        longest["validation"] = max(longest["validation"], time.perf_counter() - begun)
        _refuse_divergence(found["loss"], epoch)
        training_loss = statistics.fmean(state["losses"])
        state["peak_memory_mb"] = max(state["peak_memory_mb"], _peak_memory_mb(mesh))
        state |= {"epoch": epoch + 1, "step": 0, "losses": []}
        validation = {f"validation_{name}": value for name, value in found.items()}
        state["history"].append({"epoch": epoch + 1, "training_loss": training_loss, **validation})
        if found["loss"] < state["best"]["loss"]:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            state["best"] = {"loss": found["loss"], "epoch": epoch + 1, "model": weights}
        if speak:
            print("  ".join(f"{k} {v:.4g}" for k, v in state["history"][-1].items()), file=sys.stderr, flush=True)
            save()
        if epoch + 1 < settings.epochs and (stopping := _agreed(stop, longest["step"], mesh)):
            raise _unfinished(f"after epoch {epoch + 1}, for {stopping}", mesh)

    if speak:
        with written_aside(output) as partial:
            torch.save({"task": settings.task, "model": state["best"]["model"], "settings": asdict(settings)}, partial)
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
            "images_per_second": settings.batch / seconds,
            "sent_bytes_per_step": sent,
            "joules_per_step": None if math.isnan(joules) else joules,
            "peak_memory_per_rank_mb": state["peak_memory_mb"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_slides": task.slides,
            "history": state["history"],
        }
        with written_aside(Path(output).with_name("training.json")) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
        checkpoints.remove()


S = TypeVar("S", bound=Settings)


def trained_model(path: Path, kind: type[S], mesh: Mesh) -> tuple[nn.Module, S]:
    """The network that `train` wrote, decomposed over `mesh`, and its settings.

    Raises InputError if there is no model, or it has learnt something else.
    """
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"model {path}: no such file; make it with `gigapipe train`") from None
    except Exception:  # torn bytes make torch's reader raise anything, IndexError too
        raise InputError(f"model {path}: is torn, or no model; make it again with `gigapipe train`") from None
    if not isinstance(saved, dict) or saved.get("task") != kind.task:
        raise InputError(f"model {path}: has not learnt {kind.task}; give one that has")
    settings = kind(**saved["settings"])
    model = settings.model()
    model.load_state_dict(saved["model"])
    return decompose(model.to(mesh.device), mesh), settings


def _batches(task: Task, epoch: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (indices, symmetries) of this rank's slides, step by step; every rank draws the same plan.

    Slides that do not fill a last batch wait for another epoch.
    """
    settings, slides, mesh = task.settings, task.slides, task.mesh
    rng = np.random.default_rng([settings.seed, epoch])
    order, symmetries = rng.permutation(slides), rng.integers(0, 8, slides)
    share = settings.batch // mesh.data
    for start in range(0, slides - settings.batch + 1, settings.batch):
        mine = slice(start + mesh.data_index * share, start + (mesh.data_index + 1) * share)
        yield order[mine].tolist(), symmetries[mine].tolist()


def _schedule(progress: float, warmup: float = 0.1) -> float:
    """Share of the full learning rate at `progress` (0 to 1) through training: linear warm-up, then a half cosine."""
    if progress < warmup:
        return (progress + 0.01) / (warmup + 0.01)
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
    on_gpu = mesh.device.type == "cuda"
    most = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peaks[mesh.rank] = most / 1e6
    return mesh.everyone.sum_(peaks).max().item()
