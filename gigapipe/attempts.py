"""What the attempts at one output have come to: that none can succeed, or that one was killed for memory.

A scheduler tries again whatever the reason was, 20 times on hundreds of nodes. So an attempt leaves word beside its
output, under a key that stands for its settings: the workflow then asks for no ranks any more, and the verb ends at
once. Nothing heavy is imported here, for both.
"""

import contextlib
import importlib.util
import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gigapipe import exit_status, memory_kills
from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError, line_of

NEVER, BEGUN, MEMORY = "never.json", "begun.json", "memory.json"
KILLS = 2
"""How often an attempt may be killed for memory until there is no other."""


RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
"""By which launchers tell a process its rank."""


class InVain(InputError):
    """An attempt with the same key has ended, and this one would end so, too. The first rank says it for all."""

    @property
    def said_by_another(self) -> bool:
        return any(int(os.environ.get(name, 0)) for name in RANKS)


@dataclass(frozen=True)
class Attempts:
    """Those at `output`. `key` stands for what they were told; without one nothing is left for the next, or read.

    Where they are cheap, word lies not beside the output but in a `place` that each run of the workflow empties.
    """

    output: Path
    key: str | None = None
    place: Path | None = None

    @property
    def folder(self) -> Path:
        """Where they leave word, and ranks what they failed of."""
        return self.place or self.output.with_name(f"{self.output.name}.failed")

    @property
    def verdict(self) -> str | None:
        """Why none can succeed that has this key, if one has found that."""
        noted = self._noted(NEVER)
        if (module := noted.get("module")) and importlib.util.find_spec(module):
            return None  # it has been installed since
        return noted.get("why")

    def refuse(self) -> None:
        """Raise InVain if there is a verdict."""
        if why := self.verdict:
            when = time.strftime("%d %b %H:%M", time.localtime(self._noted(NEVER).get("when", 0)))
            remedy = f"remove {self.folder / NEVER} to try again"
            if self.place:
                remedy = "the next run of the workflow tries it again"
            raise InVain(f"{why} (recorded on {when}; {remedy})")

    def overtaken(self, inputs: Iterable[Path]) -> bool:
        """Whether one of `inputs` was made or corrected since the verdict, be it by a file that is dated before.

        Of a folder that the verdict names, all that is in it is looked at.
        """
        try:
            found = (self.folder / NEVER).stat().st_mtime
        except OSError:
            return False
        why = self.verdict or ""
        return any(_changed(path, path.name in why) > found for path in inputs)

    def begin(self, memory: int | None) -> None:
        """Note that an attempt begins, whose ranks may take `memory` bytes each; what other keys have left goes.

        Raises InVain if the one before was killed for memory and that was once too often.
        """
        if self.key:
            left = self._noted(BEGUN)
            if left and (said := memory_kills.by_scheduler(left.get("job", {}))):
                self.killed_for_memory(said)
                self.refuse()
        for path in self.folder.glob("*"):
            if path.name.startswith("rank-") or (path.name in (NEVER, MEMORY) and not self._noted(path.name)):
                path.unlink(missing_ok=True)
        if self.key:
            self._note(
                BEGUN,
                {
                    "host": socket.gethostname(),
                    "memory": memory,
                    "oom_kills": memory_kills.counted(),
                    "job": memory_kills.job(),
                },
            )
        else:
            self._remove_empty()

    def forget(self) -> None:
        """It has ended well, or has got on: what was noted is of no use any more."""
        for name in (NEVER, BEGUN, MEMORY):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        self._remove_empty()

    def note(self, error: BaseException) -> None:
        """Leave word of what an attempt has ended with, if it is of use to the next."""
        if not self.key or isinstance(error, InVain):
            return
        with contextlib.suppress(OSError):
            if exit_status.is_memory(error) and not self.place:  # elsewhere there are no ranks, and no plan
                self.killed_for_memory(str(error).strip().partition("\n")[0] or type(error).__name__)
            elif exit_status.of(error) == exit_status.NEVER:
                module = error.name if isinstance(error, ModuleNotFoundError) else None
                self._note(NEVER, {"why": line_of(error) or str(error), "module": module and module.partition(".")[0]})

    def why_killed(self, status: int, log: str) -> str | None:
        """What says that ranks which ended with `status`, and a `log`, were killed for memory, if something does."""
        if status in exit_status.TOLD:
            return None
        if said := memory_kills.in_log(log):
            return said
        begun = self._noted(BEGUN)
        if status in memory_kills.KILLED and begun.get("host") == socket.gethostname():
            return memory_kills.since(begun.get("oom_kills", {}))
        return None

    def killed_for_memory(self, said: str) -> str:
        """Count it, and say what it means; the second time it is the verdict."""
        begun, before = self._noted(BEGUN), self._noted(MEMORY)
        memory = begun.get("memory")
        planned = (
            f"{memory / 1e9:.1f} GB per rank were planned (--memory)"
            if memory
            else "nothing was planned, because no --memory was given"
        )
        kills = before.get("kills", 0) + (before.get("attempt") != begun.get("when") or not before)
        why = (
            f"{self.output}: a rank was killed because memory ran out ({said}); {planned}; set training.memory below "
            "the memory of a rank, use a larger mesh, or request more memory for the job"
        )
        self._note(MEMORY, {"kills": kills, "attempt": begun.get("when")})
        if kills >= KILLS:
            self._note(NEVER, {"why": f"{why}; this happened {kills} times"})
        return why

    def _noted(self, name: str) -> dict[str, Any]:
        """What a note with this key says; nothing if there is none."""
        if not self.key:
            return {}
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("key") == self.key else {}

    def _note(self, name: str, what: dict[str, Any]) -> None:
        with atomic_file(self.folder / name) as partial:
            partial.write_text(json.dumps({"key": self.key, "when": time.time(), **what}), encoding="utf-8")

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):  # there is none, or it holds what ranks have left, or what is not ours
            self.folder.rmdir()


def _changed(path: Path, within: bool) -> float:
    """When a path, or what it leads to, or what is `within`, was last changed; 0 if it is not there."""
    paths = [path, *(path.rglob("*") if within else ())]
    times = [0.0]
    for one in paths:
        with contextlib.suppress(OSError):
            times += [one.lstat().st_ctime, one.stat().st_ctime, one.stat().st_mtime]
    return max(times)
