"""The road under a real Slurm, with trainings cancelled, killed and out of time, ends in the uninterrupted weights."""

import re
import time

import pytest
from cohorts import same, weights
from launching import GIGAPIPE
from projects import configured, fresh_copy, make_results, processes_of, snakemake, start, watched

pytestmark = pytest.mark.timeout(1800)


def test_the_road_under_slurm_with_trainings_cancelled_killed_and_out_of_time(slurm, tmp_path):
    project = fresh_copy(tmp_path / "project")
    profile = project / "profiles/ci-slurm/profile.v9+.yaml"
    profile.write_text(profile.read_text().replace("ranks_per_node: 2", "ranks_per_node: 1"))
    phantom = {"patients": 6, "sites": 3}
    make_results(project, [8.0], leave=1, **phantom)
    arguments = ["--profile", "ci-slurm"] + configured(
        project,
        phantom=phantom,
        folds={"number": 3},
        resolutions=[{"mpp": 8, "canvas": 52, "mesh": [1, 1, 2]}],
        training={"epochs": 10, "batch": 2, "network": "resnet10", "width": 8},
        maps=0,
    )
    # As a user does; as what kills without warning; as Slurm does when a job's time is over.
    ends = [["scancel"], ["scancel", "--full", "--signal=KILL"], ["scontrol", "update", "TimeLimit=1", "JobId"]]
    stopped: list[str] = []
    last = 0.0

    def stop() -> None:
        """End the training of fold 0 in one way after another, each time when it has got on."""
        nonlocal last
        states = [path.stat().st_mtime for path in project.glob("results/8um/fold-0/checkpoints/*.pt")]
        listed = slurm("squeue", "--noheader", "--states=R", "--format=%i %k")
        running = re.search(r"^(\d+) rule_train_\S*_0$", listed, re.MULTILINE)
        if len(stopped) == len(ends) or max(states, default=0) <= last or not running or running[1] in stopped:
            return
        *end, flag = ends[len(stopped)]
        if flag == "JobId":
            # One rank stands still, as a process does that waits for a file system which is gone; or the training
            # would be over before that minute is.
            processes_of(project, GIGAPIPE, "results/8um/fold-0/model.pt")[-1].suspend()
            slurm(*end, f"JobId={running[1]}")
        else:
            slurm(*end, flag, running[1])
        stopped.append(running[1])
        last = time.time()

    process = start(project, *arguments, before=slurm.before)
    output = watched(process, stop)
    assert process.returncode == 0, output
    assert len(stopped) == len(ends), output
    assert "JobState=TIMEOUT" in slurm("scontrol", "show", "job", stopped[-1])
    assert "resumed after epoch" in (project / "results/logs/train/8um/fold-0.log").read_text()
    assert "-N 2 -n 2 --ntasks-per-node=1" in output
    assert (project / "results/comparison.tsv").exists()

    model = project / "results/8um/fold-0/model.pt"
    interrupted = weights(model)
    snakemake(project, *arguments, "-R", "train", "--", "results/8um/fold-0/model.pt", before=slurm.before)
    assert same(weights(model), interrupted)
