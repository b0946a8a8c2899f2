"""The training loop: whatever is learnt of whole slides, with one network, at one resolution, for one fold."""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from gigapipe.errors import InputError
from gigapipe.models.trained_layers import training_mode
from gigapipe.progress import Progress
from gigapipe.spatial import Mesh
from gigapipe.spatial.late import step_of_passes
from gigapipe.training.ahead import with_following
from gigapipe.training.average import Average
from gigapipe.training.batches import batches, steps_per_epoch
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.curves import FOLDER, Curves
from gigapipe.training.loss_scale import LossScale, overflow
from gigapipe.training.model_files import write_model
from gigapipe.training.optimizer import AdamW, groups, set_learning_rate
from gigapipe.training.record import Recorder, write_record
from gigapipe.training.schedule import Schedule
from gigapipe.training.settings import Settings
from gigapipe.training.state import Resumable, State
from gigapipe.training.stopping import Stop, Unfinished
from gigapipe.training.task import Task

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 300.0
"""Seconds after which the state is written within an epoch, too."""


def train(task: Task, output: Path, stop: Stop | None = None, keep: int = 2, tensorboard: bool = False) -> None:
    """Train, and write `output` (weights of the epoch with the lowest validation loss) and `training.json` beside it.

    After `patience` epochs without an improvement training ends; with schedule `plateau` it first returns to the best
    weights at a lower learning rate with a reset optimiser, `schedule.FALLS` times.

    After every epoch, within long ones, and on request of `stop`, a checkpoint is written into the folder `checkpoints`
    beside `output`, where the last `keep` are kept; a training with the same settings and slides resumes from it, on
    any mesh. They are deleted when the model is complete. With `tensorboard` the values of each epoch are also written
    into the folder of that name: see `Curves`.

    Raises InputError if the slides do not make complete batches, the loss is not a number, or ranks see different
    files; Unfinished if it was stopped. At least one step is made before that.
    """
    settings, mesh, model = task.settings, task.mesh, task.model
    speak = mesh.rank == 0
    steps = steps_per_epoch(task)
    schedule = Schedule(settings, steps)
    layers = groups(model, settings.first_layer_rate)
    optimizer = AdamW(layers, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    checkpoints = Checkpoints(output.with_name("checkpoints"), keep)
    resumable = Resumable(task, optimizer, checkpoints, steps)
    state = resumable.resume()
    average = Average(model, settings.weight_average, state.average) if settings.weight_average else None
    scale = LossScale(state.loss_scale) if settings.precision == "float16" else None
    recorder = Recorder(mesh, state)
    curves = Curves(output.with_name(FOLDER), state) if speak and tensorboard else None

    while schedule.goes_on(state):
        training_mode(model)
        saved_at = time.perf_counter()
        for slides, following in _left(task, state, steps):
            mesh.phase = f"step {state.step + 1} of {steps} of epoch {state.epoch + 1}"
            with recorder.step():
                first_of_next = following[0] if following else None
                own = step(task, optimizer, schedule.learning_rate(state), slides, state.epoch, scale, first_of_next)
            state.step += 1
            next_takes = recorder.longest_step if state.step < steps else recorder.longest_validation
            told = recorder.told(own, *wishes_of(stop, next_takes))
            state.losses.append(told[0].item() / mesh.size)
            _refuse_divergence(state.losses[-1], state.epoch, settings)
            if average:
                average.update(state.epoch * steps + state.step)
            stopping = granted(told[1:])
            if speak and (stopping or time.perf_counter() - saved_at > CHECKPOINT_EVERY):
                resumable.save(state)
                saved_at = time.perf_counter()
            if stopping:
                raise unfinished(f"after epoch {state.epoch} and {state.step} steps, for {stopping}", mesh)

        mesh.phase = f"validation after epoch {state.epoch + 1}"
        with average.in_place() if average else contextlib.nullcontext():
            with recorder.validation():
                validation = task.validate(itertools.chain.from_iterable(batches(task, state.epoch)))
                _refuse_divergence(validation["loss"], state.epoch, settings)
            state.end_epoch(validation, model, optimizer.param_groups[-1]["lr"])
        if schedule.ends(state):
            state.ended = True
        elif schedule.falls(state):
            _fall_back(state, task, optimizer)
            if average:
                average.restart()
        if speak:
            said = {name: value for name, value in {**state.history[-1], **state.took[-1]}.items() if name != "ended"}
            logger.info("  ".join(f"{name} {value:.4g}" for name, value in said.items()))
            resumable.save(state)
            if curves:  # after the state, which they are written of anew by who goes on from it
                curves.add(state, state.epoch)
        wishes = torch.tensor(wishes_of(stop, recorder.longest_step), dtype=torch.int32)
        if schedule.goes_on(state) and (stopping := granted(mesh.everyone.sum_(wishes))):
            raise unfinished(f"after epoch {state.epoch}, for {stopping}", mesh)

    if speak:
        write_model(output, state.best["model"], settings)
        write_record(output.with_name("training.json"), task, state)
        checkpoints.remove()


def step(
    task: Task,
    optimizer: AdamW,
    learning_rate: float,
    slides: list[list[int]],
    epoch: int,
    scale: LossScale | None = None,
    following: list[int] | None = None,
) -> float:
    """Change the weights by the mean gradient of a step; this rank's loss, of which the mean over ranks is the step's.

    `slides` are this rank's, of each batch that is accumulated; the first of the next step are `following`. Gradients
    that are not finite on one of the ranks change nothing where losses have a `scale`.
    """
    mesh, count = task.mesh, len(slides)
    set_learning_rate(optimizer, learning_rate)
    optimizer.zero_grad()
    with step_of_passes(mesh, count):
        factor, own = scale.factor if scale else 1.0, 0.0
        for indices, others in with_following(slides):
            own += _backward(task, indices, epoch, factor, others or following)
        own /= count
    gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
    if count > 1:
        torch._foreach_div_(gradients, count)
    if scale is None or scale.unscale(gradients, overflow(gradients, mesh)):
        optimizer.step()
    elif mesh.rank == 0:
        logger.info(f"{mesh.phase}: a gradient is beyond float16: skipped; losses are scaled by {scale.factor:g} now")
    return own


def _backward(task: Task, indices: list[int], epoch: int, scale: float, following: list[int] | None) -> float:
    """Its `backward`, in which what a network draws itself, as for dropout, depends on these alone, not on a stop."""
    torch.manual_seed(int(np.random.default_rng([task.settings.seed, epoch, *indices]).integers(2**63)))
    task.following = following
    return task.backward(indices, epoch, scale)


def _left(task: Task, state: State, steps: int) -> Iterable[tuple[list[list[int]], list[list[int]] | None]]:
    """What is left of the epoch's `batches`, each with the next; the first rank shows how far they are."""
    left = with_following(itertools.islice(batches(task, state.epoch), state.step, None))
    if task.mesh.rank:
        return left
    what = f"epoch {state.epoch + 1}/{task.settings.epochs_of(steps)}"
    return Progress(left, what=what, unit="steps", total=steps - state.step)


def _fall_back(state: State, task: Task, optimizer: AdamW) -> None:
    """To the best weights; the optimiser starts anew, and the learning rate is lower from here."""
    state.since, state.falls = state.epoch, state.falls + 1
    task.model.load_state_dict(state.best["model"])
    optimizer.state.clear()
    if task.mesh.rank == 0:
        logger.info(f"back to epoch {state.best['epoch']}, at a lower learning rate")


def wishes_of(stop: Stop | None, seconds: float) -> tuple[bool, bool]:
    """Whether this rank is to stop now, for a signal or for time; what follows has taken `seconds` before."""
    return bool(stop and stop.signal), bool(stop and stop.late(seconds))


def granted(wishes: torch.Tensor) -> str | None:
    """Why all ranks stop now, if one of them is to: `wishes` are the sums of theirs."""
    by_signal, by_time = (wishes > 0).tolist()
    return "a signal was received" if by_signal else "the time limit is near" if by_time else None


def unfinished(where: str, mesh: Mesh) -> Unfinished:
    """What is raised by who stops, once it is said."""
    if mesh.rank == 0:
        logger.info(f"stopped {where}; the same command resumes from there")
    return Unfinished(where)


def _refuse_divergence(loss: float, epoch: int, settings: Settings) -> None:
    if not math.isfinite(loss):
        largest = ", or use precision float32: in float16 numbers end at 65,504"
        instead = f"lower the learning rate{largest if settings.precision == 'float16' else ''}"
        raise InputError(f"epoch {epoch + 1}: the loss is {loss}; {instead}")
