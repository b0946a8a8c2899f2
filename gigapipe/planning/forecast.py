"""How long what is planned will take: from what Snakemake measured of earlier jobs, or else by rough rates.

A rate is of one core of the machine that README.md's demo ran on. It is there for the first run of all, and said to be
rough; from then on a job takes what its like took here.
"""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

START = {
    "phantom": 3.0,
    "pyramid": 4.0,
    "add": 4.0,
    "mask": 3.0,
    "train": 7.0,
    "predict": 7.0,
    "segment": 7.0,
    "map": 9.0,
}
"""Seconds of a job of each rule, beside its pixels: most of them is Python's, and torch's, beginning."""
OTHERS = 5.0
PIXELS = {"pyramid": 8e-9, "add": 8e-9, "train": 6e-7, "predict": 2e-7, "segment": 2e-7, "map": 3e-7}
"""Seconds a pixel: of the slide, where pyramids are made; elsewhere of what the network sees, each time it sees it."""
SLIDE_STEP = 0.06
"""Seconds of a slide in a training, beside its pixels."""


PHANTOM_BYTES = 190_000
"""Of a phantom slide's file."""
MODEL_BYTES = {"resnet10": 20e6, "resnet18": 45e6, "resnet34": 85e6, "resnet50": 94e6, "efficientnet_lite0": 13.7e6}
"""Of the file of a network as wide as 64; of another width about as its square."""
CHECKPOINT = 4
"""How many times its model's file a checkpoint takes: weights, those of the best epoch, AdamW's two moments."""
MAP_BYTES = 1e6
"""Of a slide's map and its picture."""


class Job(NamedTuple):
    """What is known of a job before it runs."""

    rule: str
    name: str
    """Its file of measurements, below the folder of benchmarks."""
    stage: int
    """Jobs of a stage run side by side, after those of the stages before."""
    cores: int = 1
    pixels: float = 0.0
    """That it reads or that its network sees, all together."""
    slide_steps: float = 0.0


class Forecast(NamedTuple):
    seconds: float
    by_stage: dict[int, float]
    measured: int
    """How many of the jobs have their like among what was measured."""
    jobs: int

    def __str__(self) -> str:
        if self.measured == self.jobs:
            how = "from earlier measurements here"
        elif not self.measured:
            how = "a rough estimate: nothing was measured here yet"
        else:
            new = self.jobs - self.measured
            how = f"a rough estimate for {new} of {self.jobs} jobs, the others from earlier measurements here"
        return f"about {duration(self.seconds)} ({how})"


def measurements(benchmarks: Path) -> dict[str, float]:
    """Seconds that each job took last, by its file below `benchmarks`, without its suffix."""
    found = {}
    for path in sorted(benchmarks.rglob("*.tsv")):
        with open(path, encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        if rows and rows[-1].get("s", "-") not in ("-", ""):
            found[str(path.relative_to(benchmarks).with_suffix(""))] = float(rows[-1]["s"])
    return found


def rough(job: Job) -> float:
    """Seconds of a job, by rates."""
    work = PIXELS.get(job.rule, 0.0) * job.pixels + SLIDE_STEP * job.slide_steps
    return START.get(job.rule, OTHERS) + work / job.cores


def expected(job: Job, measured: Mapping[str, float]) -> tuple[float, bool]:
    """Seconds of a job, and whether its like was measured: itself, or else others of its rule at its resolution."""
    if job.name in measured:
        return measured[job.name], True
    *folders, _ = job.name.split("/")
    while folders:
        like = [seconds for name, seconds in measured.items() if name.startswith("/".join(folders) + "/")]
        if like and len(folders) > (1 if job.rule in ("train", "predict", "map", "segment") else 0):
            return sum(like) / len(like), True
        folders.pop()
    return rough(job), False


def forecast(jobs: Sequence[Job], measured: Mapping[str, float], cores: int) -> Forecast:
    """What `jobs` take on so many cores: each stage as long as its longest job, or as all of them side by side."""
    by_stage: dict[int, float] = {}
    known = 0
    for stage in sorted({job.stage for job in jobs}):
        of = [job for job in jobs if job.stage == stage]
        found = [expected(job, measured) for job in of]
        known += sum(like for _, like in found)
        busy = sum(seconds * min(job.cores, cores) for job, (seconds, _) in zip(of, found, strict=True))
        by_stage[stage] = max(busy / cores, max(seconds for seconds, _ in found))
    return Forecast(sum(by_stage.values()), by_stage, known, len(jobs))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 129600 else f"{seconds / 86400:.1f} days"


class Progress:
    """How far the jobs of a run are, a line at a time, and no more lines than fill a screen.

    `nouns` are what rules make, `jobs` are by Snakemake's numbers. Times are in seconds, of any clock.
    """

    LINES = 40

    def __init__(self, jobs: Mapping[int, Job], nouns: Mapping[str, str], measured: Mapping[str, float], cores: int):
        self._jobs, self._nouns = jobs, nouns
        self._forecast = forecast(list(jobs.values()), measured, cores)
        self._total = Counter(job.rule for job in jobs.values())
        self._stage_of = {job.rule: job.stage for job in jobs.values()}
        together = Counter(job.stage for job in jobs.values())
        self._normal = {
            rule: self._forecast.by_stage[stage] / together[stage] for rule, stage in self._stage_of.items()
        }
        self._done: Counter[str] = Counter()
        self._begun: dict[str, float] = {}
        self._said = -math.inf
        self._every = max(10.0, self._forecast.seconds / self.LINES)

    def started(self, number: int, now: float) -> None:
        if number in self._jobs:
            self._begun.setdefault(self._jobs[number].rule, now)

    def finished(self, number: int, now: float) -> str | None:
        """What is to be said when a job has ended, if anything is."""
        if number not in self._jobs:
            return None
        rule = self._jobs[number].rule
        self._done[rule] += 1
        done, total = self._done[rule], self._total[rule]
        if total == 1 or done < total and now - self._said < self._every:
            return None
        self._said = now
        each = (now - self._begun.get(rule, now)) / done
        line = f"{self._nouns.get(rule, rule)}: {done} of {total}, one every {each:.1f} s"
        line += f", {self._normal[rule]:.1f} s expected"
        if done < total:
            line += f"; about {duration((total - done) * each)} left"
        later = sum(seconds for stage, seconds in self._forecast.by_stage.items() if stage > self._stage_of[rule])
        return line + (f"; then about {duration(later)} for the rest" if later >= 1 else "")
