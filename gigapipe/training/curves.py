"""Curves of a training as TensorBoard shows them, in an event file beside the model.

A process that begins a training, or goes on with it, writes them anew from the state that it has, and empties the file
of the process before: no epoch is in there twice, none is missing, and nothing is left of what a kill has cut off.
"""

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gigapipe.errors import Unavailable

if TYPE_CHECKING:  # the workflow asks for the package before anything runs, and needs no torch for it
    from gigapipe.training.state import State

FOLDER = "tensorboard"


def refuse_without_package() -> None:
    """Raise Unavailable if what writes event files is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise Unavailable(
            "tensorboard: tensorboardX is not installed; install it with pip install 'gigapipe[tensorboard]'"
        )


class Curves:
    """What each epoch of a training has come to, in `folder`. One rank makes it, and tells it of further epochs.

    Steps are epochs. Tags are the figures of `State.history`, as `loss/training` and `loss/validation`, and those of
    `State.took`, as `epoch/seconds`.
    """

    def __init__(self, folder: Path, state: "State"):
        refuse_without_package()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        for before in folder.glob("events.out.tfevents.*"):
            # A TensorBoard that is open reads on where it was in the last file, and stops for good if there is none.
            if before.stat().st_size:
                os.truncate(before, 0)
            else:
                before.unlink()
        self._file = EventsWriter(str(folder / "events"))
        # It then forgets what it has read there.
        self._file.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))
        for epoch in range(1, state.epoch + 1):
            self.add(state, epoch)
        self._file.flush()

    def add(self, state: "State", epoch: int) -> None:
        """Write what an epoch that has ended has come to."""
        took = next((one for one in state.took if one["epoch"] == epoch), {"ended": time.time()})
        figures = {_tag(name): value for name, value in state.history[epoch - 1].items() if name != "epoch"}
        figures |= {f"epoch/{name}": value for name, value in took.items() if name not in ("epoch", "ended")}
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._file.write_event(self._event(wall_time=took["ended"], step=epoch, summary=self._summary(value=values)))
        self._file.flush()


def _tag(name: str) -> str:
    """`loss/validation` of `validation_loss`: TensorBoard shows together what begins alike."""
    whose, _, figure = name.partition("_")
    return f"{figure}/{whose}"
