"""Jobs of a real Slurm of two nodes: what they end with, what is tried again, and what they share."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from launching import GIGAPIPE, ROOT, ended
from projects import configured, fresh_copy, make_results, snakemake, start, watched

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides import phantom

pytestmark = pytest.mark.timeout(1800)


def test_a_training_that_always_diverges_asks_for_ranks_once(slurm, tmp_path):
    project = fresh_copy(tmp_path / "project")
    phantom = {"patients": 6, "sites": 3}
    make_results(project, [48.0], leave=1, **phantom)
    arguments = ["--profile", "ci-slurm"] + configured(
        project,
        phantom=phantom,
        folds={"number": 3},
        resolutions=[{"mpp": 48, "canvas": 9, "mesh": [1, 2, 1]}],
        training={"epochs": 3, "batch": 2, "network": "resnet10", "width": 8, "learning_rate": 1e30},
        maps=0,
    )
    failed: list[float] = []

    def look() -> None:
        if not failed and list(project.glob("results/48um/fold-0/model.pt.failed/never.json")):
            failed.append(time.time())

    process = start(project, *arguments, "--", "results/48um/fold-0/model.pt", before=slurm.before)
    output = watched(process, look)
    assert process.returncode == 1
    jobs = map(str.split, slurm("squeue", "--noheader", "--states=all", "--sort=i", "--format=%k %C").splitlines())
    cores = [int(cores) for name, cores in jobs if name.startswith("rule_train_wildcards_48_")]
    print(f"{time.time() - failed[0]:.0f} s from the first failure to the end; cores of the jobs: {cores}")
    assert time.time() - failed[0] < 300
    assert cores == [2, 1]  # one on ranks found it, and one tells it
    assert output.count("gigapipe: epoch 1: the loss is ") >= 2, output  # once of each


@pytest.mark.parametrize("transport, victim", [("mpi", 0), ("torch", 3)])
def test_a_killed_rank_ends_the_others_and_slurm_need_not(slurm, transport, victim):
    """On two nodes; Slurm would give them half a minute."""
    program = str(ROOT / "tests/ranks/forever.py")
    command = [
        "srun",
        "-K",
        "--mpi=pmi2",
        "-N",
        "2",
        "-n",
        "4",
        "--ntasks-per-node=2",
        sys.executable,
        program,
        transport,
    ]
    slurm.set("KillWait", 30)
    try:
        with ended(
            subprocess.Popen(
                [*slurm.before, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        ) as process:
            lines = iter(process.stdout.readline, "")
            pids = json.loads(next(line for line in lines if line.startswith("[")))
            os.kill(pids[victim], signal.SIGKILL)
            killed = time.monotonic()
            while any(psutil.pid_exists(pid) for pid in pids):
                time.sleep(0.05)
            seconds = time.monotonic() - killed
            output, _ = process.communicate(timeout=60)
        print(f"{transport}: {seconds:.1f} s; srun ended after {time.monotonic() - killed:.1f} s\n{output}")
        assert seconds < 5 and process.returncode
        assert f"rank {victim} (process {pids[victim]} on {socket.gethostname()}) has ended without a message" in output
    finally:
        slurm.set("KillWait", 5)


def test_a_requeued_job_starts_though_its_ranks_were_killed(slurm, tmp_path):
    """It has the same name, under which MPICH would find the shared memory of the dead."""
    program = tmp_path / "once.py"
    program.write_text(
        "import os, signal, sys\n"
        "from gigapipe.training.ranks import started\n"
        "with started(1, 2, 1, 1) as mesh:\n"
        "    mesh.phase = 'met'\n"
        "    if sys.argv[1] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('met')\n"
    )
    job = slurm(
        *("sbatch", "--wait", "--parsable", "--requeue", "--open-mode=append", f"--output={tmp_path}/log", "-n", "2"),
        *("--wrap", f"srun -K --mpi=pmi2 -n 2 {sys.executable} {program} ${{SLURM_RESTART_COUNT:-0}}"),
        check=False,
    ).strip()
    log = tmp_path / "log"
    assert "met" not in log.read_text()
    slurm("scontrol", "requeue", job)
    time.sleep(3)  # a node refuses a job in the second in which it ended it: its credential is revoked
    deadline = time.monotonic() + 180
    while "JobState=COMPLETED" not in (state := slurm("scontrol", "show", "job", job)) and time.monotonic() < deadline:
        if "JobState=PENDING" in state:  # whenever Slurm has come to that: it would start in two minutes
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
            # A node may refuse a job that it is still ending, and Slurm then holds it.
            slurm("scontrol", "release", job, check=False)
        time.sleep(0.5)
    controller = (slurm.folder / "log/slurmctld.log").read_text()
    assert log.read_text().count("met\n") == 2, f"{log.read_text()}\n{state}\n{controller[-5000:]}"


def test_pyramids_share_nodes_and_one_that_fails_takes_no_other_with_it(slurm, tmp_path):
    project = fresh_copy(tmp_path / "project")
    (project / "my").mkdir()
    slides = phantom.cohort(seed=9, patients=6, folder="my")[:4]
    for slide in slides:
        phantom.write_slide(project / slide.source, phantom.render(slide))
    pd.DataFrame(map(phantom.sheet_row, slides)).to_csv(project / "my/slides.tsv", sep="\t", index=False)
    torn = project / slides[1].source
    whole = torn.read_bytes()
    torn.write_bytes(whole[:5000])
    arguments = ["--profile", "ci-slurm", "--retries", 0, "--config", "slides=my/slides.tsv", "--", "pyramids"]

    def submitted() -> int:
        return slurm("squeue", "--noheader", "--states=all", "--format=%k").count("rule_pyramid_")

    before = submitted()
    status, output = snakemake(project, *arguments, check=False, before=slurm.before)
    assert status and "4 pyramids: 2 jobs, up to 2 at the same time on a node" in output
    said = {line.strip() for line in output.splitlines() if line.strip().startswith("gigapipe:")}
    assert len(said) == 1 and torn.name in said.pop(), output
    made = {path.name: path.stat().st_mtime_ns for path in (project / "results/pyramids").glob("[!.]*")}
    assert made.keys() == {slide.slide for slide in slides} - {slides[1].slide}
    assert submitted() - before == 2

    torn.write_bytes(whole)
    snakemake(project, *arguments, before=slurm.before)
    now = {path.name: path.stat().st_mtime_ns for path in (project / "results/pyramids").glob("[!.]*")}
    assert now.items() > made.items() and len(now) == 4
    assert submitted() - before == 3


@pytest.fixture
def jobqueue(tmp_path, monkeypatch) -> Path:
    """A folder to work in, where Dask knows what its jobs ask for."""
    for name, value in {"CORES": 1, "MEMORY": "1GB", "WALLTIME": "00:05:00", "DEATH_TIMEOUT": 60}.items():
        monkeypatch.setenv(f"DASK_JOBQUEUE__SLURM__{name}", str(value))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_pyramid_by_jobs_that_dask_submits(slurm, jobqueue):
    tmp_path = jobqueue
    slide = phantom.cohort(seed=3, patients=2, folder=str(tmp_path))[0]
    phantom.write_slide(Path(slide.source), phantom.render(slide))
    build_pyramid(Path(slide.source), tmp_path / "here", [2.0, 8.0])
    there = str(tmp_path / "there")
    print(slurm(GIGAPIPE, "pyramid", slide.source, there, "--mpp", "2", "8", "--scheduler", "slurm"))
    assert slurm("squeue", "--noheader", "--states=all", "--format=%j %T").count("dask-worker") >= 1
    for mpp in (2.0, 8.0):
        here, there = (Pyramid(tmp_path / name).array(mpp)[:] for name in ("here", "there"))
        assert (here == there).all()


def test_nobody_but_its_own_jobs_is_let_into_a_cluster_of_dask_s(slurm, jobqueue):
    shared = jobqueue / "a folder's"
    shared.mkdir()
    found = json.loads(slurm(sys.executable, str(ROOT / "tests/slurm/strangers.py"), str(shared)).splitlines()[-1])
    print(*found["sockets"], sep="\n")
    assert found["sum"] == 3 and found["left"] == [] and found["modes"] == ["0o600", "0o700"]
    own = [socket for socket in found["sockets"] if not socket["pages"]]
    assert len({socket["port"] for socket in own}) == 3  # the scheduler, a worker, and who watches over it
    assert all(socket["own key"] and not socket["plain"] and not socket["other key"] for socket in own)
    to_browsers = [socket for socket in found["sockets"] if socket["pages"]]
    assert {socket["address"] for socket in to_browsers} == {"127.0.0.1"}
    assert {status for socket in to_browsers for status in socket["pages"].values()} == {404}
