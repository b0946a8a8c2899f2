"""The training loop: one network, one resolution, one fold."""

import json
import math
import pickle
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gigapipe.aside import written_aside
from gigapipe.errors import InputError
from gigapipe.models import resnet18
from gigapipe.progress import Progress
from gigapipe.spatial import Mesh, decompose
from gigapipe.training.canvases import Canvases


@dataclass(frozen=True)
class Settings:
    """What determines the trained weights, beside the slides. Written into the model and its checkpoint."""

    mpp: float
    canvas: int
    fold: int
    classes: list[str]
    epochs: int
    batch: int  # slides a step, over all data ranks
    learning_rate: float
    weight_decay: float
    seed: int
    precision: str = "float32"  # of activations; "bfloat16" by autocast, the weights stay float32

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")


def train(settings: Settings, training: Canvases, validation: Canvases, mesh: Mesh, output: Path) -> None:
    """Train, and write `output` (weights of the best epoch on `validation`) and `training.json` beside it.

    After every epoch the state is written to `checkpoint.pt` beside `output`; a run that finds one made with the
    same settings and slides goes on from there. It is removed when the model is whole.
    """
    if settings.batch % mesh.data:
        raise InputError(f"batch: {settings.batch} slides do not divide over {mesh.data} data ranks; give a multiple")
    if settings.batch == 1 and settings.canvas <= 32:
        raise InputError(
            f"canvas: {settings.canvas} px end as one pixel, and a batch of one pixel has no variance to normalise by; "
            "give a batch of 2 or more"
        )
    if len(training) < settings.batch:
        raise InputError(
            f"fold {settings.fold}: {len(training)} training slides do not fill a batch of {settings.batch}"
        )
    speak = mesh.rank == 0
    torch.manual_seed(settings.seed)
    model = decompose(resnet18(len(settings.classes)).to(memory_format=torch.channels_last), mesh)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )

    checkpoint = Path(output).with_name("checkpoint.pt")
    identity = _identity(settings, training, validation)
    shape = [mesh.data, mesh.rows, mesh.columns]
    state = {"epoch": 0, "history": [], "best": {"loss": math.inf}, "mesh": shape, "seconds": [], "peak_memory_mb": 0.0}
    saved = _load(checkpoint)
    if saved and saved["identity"] == identity:
        state = {key: saved[key] for key in state}
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if state["mesh"] != shape and state["epoch"] < settings.epochs:  # another mesh, another cost
            state |= {"mesh": shape, "seconds": [], "peak_memory_mb": 0.0}
        if speak:
            print(f"resumed after epoch {state['epoch']} of {settings.epochs}", file=sys.stderr)
    elif checkpoint.exists() and speak:
        print(f"{checkpoint} is torn, or of other settings or slides: starting afresh", file=sys.stderr)
    epochs = mesh.everyone.sum_(torch.tensor(float(state["epoch"])))
    if epochs != mesh.size * state["epoch"]:
        raise InputError(f"{checkpoint}: ranks see different files; give the file system time, and run it again")

    steps = len(training) // settings.batch
    for epoch in range(state["epoch"], settings.epochs):
        model.train()
        losses = []
        batches = _batches(len(training), settings, epoch, mesh)
        if speak:
            batches = Progress(batches, what=f"epoch {epoch + 1}/{settings.epochs}", unit="steps", total=steps)
        for step, (indices, symmetries) in enumerate(batches):
            begun = time.perf_counter()
            images, labels = training.batch(indices, symmetries)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule((epoch * steps + step) / (settings.epochs * steps))
            with settings.autocast():
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            _refuse_divergence(loss.item(), epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            state["seconds"].append(time.perf_counter() - begun)

        with settings.autocast():
            measure_statistics(model, training, (b for b, _ in _batches(len(training), settings, epoch, mesh)))
            probabilities = predict(model, validation, mesh)
        loss = F.nll_loss(probabilities.clamp_min(1e-12).log(), validation.labels).item()
        _refuse_divergence(loss, epoch)
        training_loss = mesh.everyone.sum_(torch.tensor(np.mean(losses))).item() / mesh.size
        state["peak_memory_mb"] = max(state["peak_memory_mb"], _peak_memory_mb(mesh))
        state["epoch"] = epoch + 1
        state["history"].append(
            {
                "epoch": epoch + 1,
                "training_loss": training_loss,
                "validation_loss": loss,
                "validation_accuracy": (probabilities.argmax(1) == validation.labels).double().mean().item(),
            }
        )
        if loss < state["best"]["loss"]:
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            state["best"] = {"loss": loss, "epoch": epoch + 1, "model": weights}
        if speak:
            print("  ".join(f"{k} {v:.4g}" for k, v in state["history"][-1].items()), file=sys.stderr, flush=True)
            whole = {**state, "identity": identity, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with written_aside(checkpoint) as partial:
                torch.save(whole, partial)

    if speak:
        with written_aside(output) as partial:
            torch.save({"model": state["best"]["model"], "settings": asdict(settings)}, partial)
        record = {
            "settings": asdict(settings),
            "best_epoch": state["best"]["epoch"],
            "mesh": shape,
            # The first steps of a process also pay for its warming up.
            "seconds_per_step": statistics.median(state["seconds"][2:] or state["seconds"]),
            "peak_memory_per_rank_mb": state["peak_memory_mb"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_slides": len(training),
            "history": state["history"],
        }
        with written_aside(Path(output).with_name("training.json")) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n")
        checkpoint.unlink(missing_ok=True)


@torch.no_grad()
def measure_statistics(model: torch.nn.Module, canvases: Canvases, batches) -> None:
    """Set every BatchNorm's running statistics to their plain mean over `batches` at the present weights.

    `batches` yields lists of indices into `canvases`; all ranks call it together.

    The usual moving average lags behind the weights by some ten steps, and with few steps an epoch the network that
    is validated is not the one that was trained ("precise BN", Wu and Johnson 2021, arXiv:2105.07576, section 3).
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the plain mean over all calls
    model.train()
    for indices in batches:
        model(canvases.batch(indices)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def predict(model: torch.nn.Module, canvases: Canvases, mesh: Mesh) -> torch.Tensor:
    """Class probabilities (slides, classes), float64, the same on every rank; data ranks share out the slides."""
    model.eval()
    found = torch.zeros(len(canvases), model.fc.out_features, dtype=torch.float64)
    for index in range(mesh.data_index, len(canvases), mesh.data):
        images, _ = canvases.batch([index])
        # The ranks of one image have found the same: their sum must count it once.
        found[index] = F.softmax(model(images).double(), dim=1)[0] / mesh.image_ranks
    return mesh.everyone.sum_(found)


def _batches(slides: int, settings: Settings, epoch: int, mesh: Mesh):
    """Yield (indices, symmetries) of this rank's slides, step by step; every rank draws the same plan.

    Slides that do not fill a last batch wait for another epoch.
    """
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


def _identity(settings: Settings, *canvases: Canvases) -> str:
    """What must be the same for a checkpoint to be gone on from: the settings and the slides' pixels."""
    slides = [[c.slides, c.labels.tolist(), [p.source["md5"] for p in c.pyramids]] for c in canvases]
    return json.dumps([asdict(settings), slides], sort_keys=True)


def _load(checkpoint: Path) -> dict | None:
    """The state in `checkpoint`; None where there is none, or none that can be read."""
    try:
        return torch.load(checkpoint, weights_only=True)
    except (FileNotFoundError, EOFError, RuntimeError, pickle.UnpicklingError):
        return None


def _refuse_divergence(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"epoch {epoch + 1}: the loss is {loss}; lower the learning rate")


def _peak_memory_mb(mesh: Mesh) -> float:
    """The largest resident set that any rank's process has had."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peaks = torch.zeros(mesh.size, dtype=torch.float64)
    peaks[mesh.rank] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return mesh.everyone.sum_(peaks).max().item()
