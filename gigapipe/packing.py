"""Jobs that are less than a node go to a cluster several at a time, as one job; to Snakemake each stays its own.

Snakemake's own groups end as one: where one of their jobs fails, the outputs of all are deleted and all are made again
(its issues 2508 and 4248), and Slurm's executor runs them one after another. Here each job is told of by itself, and
what has failed or was killed is tried again without the others.
"""

import os
import shlex
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

SETTLE = 5.0
"""Seconds that Snakemake has for the next jobs, when all that run wait for others to share their node."""

CLUSTERS = ("slurm", "cluster-generic")
"""The executors whose jobs may share nodes."""

NODE = """#!/bin/bash
# Jobs that share a node. Each leaves its exit status.
for job in {folder}/*.sh; do
    [ -e "${{job%.sh}}.ended" ] && continue # the scheduler has queued all again, after a node's failure perhaps
    (
        bash "$job"
        echo $? > "$job.status"
        mv "$job.status" "${{job%.sh}}.ended"
    ) &
done
wait
"""


@dataclass
class Pack:
    """Jobs of one rule that share a node."""

    jobs: list = field(default_factory=list)
    filled: Fraction = Fraction(0)
    last: float = 0.0  # when the last one came
    folder: Path | None = None  # of their scripts, when they are submitted


def share_nodes() -> None:
    """Let executors submit jobs together whose resource `per_node` says that a node takes more than one of them.

    To be called in Snakemake's main process, before it starts its executor. A job's resource `node_launcher` is what
    starts them all, where a job does not begin on its node.
    """
    plugins = ExecutorPluginRegistry()
    for name in CLUSTERS:
        if plugins.is_installed(name) and not issubclass(plugins.get_plugin(name).executor, Packing):
            plugin = plugins.get_plugin(name)
            plugin.executor = type("Executor", (Packing, plugin.executor), {})


def _share(job: Any) -> Fraction:
    """How much of a node a job takes."""
    return Fraction(1, 1 if job.is_group() else max(1, job.resources.get("per_node") or 1))


class Packing(RemoteExecutor):
    """What is laid over an executor: it submits the first job of each pack, whose command is that of all."""

    def __init__(self, workflow, logger):
        self._packing = threading.Lock()
        self._open: dict[str, Pack] = {}
        self._packs: dict[Any, Pack] = {}  # by the first job of each
        self._number = 0
        super().__init__(workflow, logger)

    def run_jobs(self, jobs: Sequence) -> None:
        if whole := [job for job in jobs if _share(job) == 1]:
            super().run_jobs(whole)
        for job in jobs:
            if _share(job) < 1:
                self._add(job)

    def _add(self, job: Any) -> None:
        full = []
        with self._packing:
            pack = self._open.setdefault(job.rule.name, Pack())
            if pack.filled + _share(job) > 1:
                full.append(pack)
                pack = self._open[job.rule.name] = Pack()
            pack.jobs.append(job)
            pack.filled += _share(job)
            pack.last = time.monotonic()
            if pack.filled == 1:
                full.append(self._open.pop(job.rule.name))
        for pack in full:
            self._send(pack)

    def _send(self, pack: Pack) -> None:
        first, *others = pack.jobs
        if others:
            self.logger.info(f"{len(pack.jobs)} jobs of rule {first.rule.name} share a node.")
        for job in others:
            self.run_job_pre(job)
        self._packs[first] = pack
        super().run_jobs([first])

    def _send_rest(self) -> None:
        """Ask for nodes that do not become full: no more jobs of the rule come, or what they wait for has failed."""
        with self._packing:
            held = sum(len(pack.jobs) for pack in self._open.values())
            settled = time.monotonic() > max((pack.last for pack in self._open.values()), default=0) + SETTLE
        if not held:
            return
        scheduler = self.workflow.scheduler
        try:
            to_come = {job.rule.name for job in scheduler.remaining_jobs}
        except RuntimeError:  # which Snakemake is just changing; the next time, then
            return
        stuck = settled and len(scheduler.running) == held
        with self._packing:
            rest = [self._open.pop(rule) for rule in list(self._open) if stuck or rule not in to_come]
        for pack in rest:
            self._send(pack)

    def format_job_exec(self, job: Any) -> str:
        pack = self._packs.get(job)
        if pack is None:
            return super().format_job_exec(job)
        with self._packing:
            self._number += 1
            pack.folder = Path(self.tmpdir, f"node-{self._number}")
        pack.folder.mkdir()
        # Slurm's executor would start each job as a step of the whole node.
        aside = self.additional_general_args()
        for i, one in enumerate(pack.jobs):
            command = super().format_job_exec(one)
            if isinstance(aside, str) and aside:
                command = command.replace(f" {aside} ", " ")
            (pack.folder / f"{i}.sh").write_text(f"{command}\n", encoding="utf-8")
        script = pack.folder / "node"
        script.write_text(NODE.format(folder=shlex.quote(str(pack.folder))), encoding="utf-8")
        return f"{job.resources.get('node_launcher') or ''} bash {shlex.quote(str(script))}".strip()

    def report_job_submission(self, job_info: SubmittedJobInfo, register_job: bool = True) -> None:
        pack = self._packs.get(job_info.job)
        for other in pack.jobs[1:] if pack else []:
            # Without a place among those whose state is asked for.
            RealExecutor.report_job_submission(
                self, SubmittedJobInfo(other, job_info.external_jobid, job_info.aux), register_job=register_job
            )
        super().report_job_submission(job_info, register_job=register_job)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        self._send_rest()
        async for info in super().check_active_jobs(active_jobs):
            yield info

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        if pack := self._packs.pop(job_info.job, None):
            self._tell(pack, job_info, self.workflow.execution_settings.latency_wait)
        else:
            super().report_job_success(job_info)

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **told) -> None:
        if pack := self._packs.pop(job_info.job, None):
            self._tell(pack, job_info, 0, msg, **told)
        else:
            super().report_job_error(job_info, msg=msg, **told)

    def _tell(self, pack: Pack, info: SubmittedJobInfo, wait: float, msg: str | None = None, **told) -> None:
        """Tell of each job of a pack by itself; what they left may be seen up to `wait` seconds late."""
        end = time.monotonic() + wait
        for i, job in enumerate(pack.jobs):
            one = SubmittedJobInfo(job, info.external_jobid, info.aux)
            while (status := _left(pack.folder, i)) is None and time.monotonic() < end:
                time.sleep(1)
            if status == 0:
                super().report_job_success(one)
            else:
                super().report_job_error(one, msg=msg if status is None else None, **told)


def _left(folder: Path | None, i: int) -> int | None:
    """The exit status of a job of a pack; None if it left none."""
    if folder is None:
        return None
    os.listdir(folder)  # a network's file system looks anew
    try:
        return int((folder / f"{i}.ended").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
