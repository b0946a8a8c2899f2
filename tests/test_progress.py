"""What is said of long work."""

import io
import logging
import sys
from typing import get_args

import pytest
import torch

from gigapipe.cli.messages import log_to_stderr
from gigapipe.configuration.configuration import NETWORKS
from gigapipe.models.networks import classifier
from gigapipe.planning.forecast import MODEL_BYTES, Job, Progress, forecast, measurements


def jobs_of_a_run() -> dict[int, Job]:
    pyramids = [Job("pyramid", f"pyramid/s{i}", stage=0, pixels=1e9) for i in range(60)]
    trainings = [Job("train", f"train/{mpp}um/fold-{i}", 1, cores=2, pixels=1e10) for mpp in (2, 8) for i in range(2)]
    return dict(enumerate([*pyramids, *trainings]))


def test_the_file_of_every_network_is_about_as_large_as_forecasts_say():
    assert MODEL_BYTES.keys() == set(get_args(NETWORKS))
    for name in MODEL_BYTES:
        with torch.device("meta"):
            weights = classifier(name, {}, 2, 64, "batch", "average", 64).state_dict().values()
        assert sum(weight.nbytes for weight in weights) == pytest.approx(MODEL_BYTES[name], rel=0.05), name


def test_a_run_takes_what_its_like_took_here_or_else_what_rough_rates_say(tmp_path):
    jobs = list(jobs_of_a_run().values())
    nothing = forecast(jobs, measurements(tmp_path), cores=2)
    assert nothing.measured == 0 and "a rough estimate: nothing was measured here yet" in str(nothing)
    for name, seconds in {"pyramid/s0": 4, "pyramid/s1": 6, "train/2um/fold-0": 100, "train/8um/fold-0": 40}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.tsv").write_text(f"s\th:m:s\n{seconds}\t0:00:0{seconds}\n")
    found = forecast(jobs, measurements(tmp_path), cores=2)
    # 58 pyramids take the 5 s of two others, and trainings what others of their resolution do.
    assert found.by_stage == {0: (58 * 5 + 10) / 2, 1: 2 * 100 + 2 * 40}
    assert found.measured == found.jobs == 64 and str(found) == "about 7 min (from earlier measurements here)"
    assert forecast(jobs[60:], measurements(tmp_path), cores=1000).seconds == 100
    half = forecast([*jobs, Job("map", "map/2um", 2)], measurements(tmp_path), 2)
    assert "a rough estimate for 1 of 65 jobs, the others from earlier measurements here" in str(half)


def test_a_run_tells_how_far_it_is_on_one_screen():
    measured = {"pyramid/s0": 4.0, "train/2um/fold-0": 100.0, "train/8um/fold-0": 40.0}
    jobs = jobs_of_a_run()
    progress, said, now = Progress(jobs, {"pyramid": "pyramids"}, measured, cores=2), [], 0.0
    for number in jobs:
        progress.started(number, now)
        now += 3 if number < 60 else 90
        said.append(progress.finished(number, now))
    lines = [line for line in said if line]
    assert len(lines) <= Progress.LINES
    rest = "then about 5 min for the rest"
    assert lines[0] == f"pyramids: 1 of 60, one every 3.0 s, 2.0 s expected; about 3 min left; {rest}"
    assert said[59] == f"pyramids: 60 of 60, one every 3.0 s, 2.0 s expected; {rest}"
    assert said[-1] == "train: 4 of 4, one every 90.0 s, 70.0 s expected"
    assert progress.finished(999, now) is None


def test_what_is_logged_is_a_plain_line_on_standard_error_once(capsys):
    log_to_stderr()
    log_to_stderr()
    logging.getLogger("gigapipe.slides.disk_space").info("3 slides to download.")
    assert capsys.readouterr().err == "3 slides to download.\n"


def test_lines_of_ranks_do_not_mix(monkeypatch):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.writes = []

        def writable(self):
            return True

        def write(self, data):
            self.writes.append(bytes(data))
            return len(data)

    pipe = Pipe()  # behind what Python opens as standard error
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(pipe, encoding="utf-8", write_through=True))
    log_to_stderr()
    print("rank 0 on host-1: processes 8161", file=sys.stderr)
    assert pipe.writes == [b"rank 0 on host-1: processes 8161\n"]
