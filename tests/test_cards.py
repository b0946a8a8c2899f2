"""A machine with four pretended GPUs: which job got which, and what the workflow asks for."""

import re
import subprocess
import sys

import pytest
from launching import GIGAPIPE
from projects import configured, snakemake

TAKE = "import sys; from gigapipe.cards import take; print(*take(int(sys.argv[1]), list('0123')), flush=True); input()"


class Job:
    """A process that takes so many of four GPUs and keeps them until it is told to end."""

    def __init__(self, number: int):
        command = [sys.executable, "-c", TAKE, str(number)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def taken(self) -> list[str]:
        assert self.process.stdout
        return self.process.stdout.readline().split()

    def end(self) -> None:
        self.process.communicate("\n")


@pytest.fixture(autouse=True)
def four_cards(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where jobs hold their locks
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")


def test_jobs_side_by_side_have_each_their_own_and_others_wait():
    first, second, third = Job(1), Job(1), Job(2)
    taken = [job.taken() for job in (first, second, third)]
    assert sorted(sum(taken, [])) == list("0123"), taken
    waiting = Job(3)
    second.end()
    last = Job(1)
    assert last.taken() == taken[1], "one that needs fewer goes before"
    last.end()
    third.process.kill()  # the system lets go of its locks
    third.end()
    assert sorted(waiting.taken()) == sorted(taken[1] + taken[2])
    waiting.end()
    first.end()


def test_a_command_sees_its_gpus_and_no_others():
    job = Job(3)
    (left,) = set("0123") - set(job.taken())
    command = [GIGAPIPE, "cards", "1", "OF=a job", "sh", "-c", "echo $OF: $CUDA_VISIBLE_DEVICES; exit 75"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, f"a job: {left}\n"), done
    assert f"GPUs: {left} of 0,1,2,3" in done.stderr
    job.end()


def test_the_workflow_asks_for_a_gpu_for_each_rank_as_far_as_there_are(project):
    meshes = {2: [1, 1, 1], 4: [1, 2, 3]}
    resolutions = [{"mpp": mpp, "canvas": 208, "mesh": mesh} for mpp, mesh in meshes.items()]
    arguments = configured(project, resolutions=resolutions, folds={"number": 3})
    targets = [f"results/{mpp}um/fold-0/model.pt" for mpp in meshes]
    _, output = snakemake(project, "-n", "--printshellcmds", "--profile", "local", *arguments, "--", *targets)
    started = re.findall(r"(?:Shell command: | {8})(.*?) +gigapipe train .*--mpp (\d)", output)
    assert sorted(started) == [("gigapipe cards 1", "2"), ("gigapipe cards 4 mpiexec -n 6", "4")]
    asked = re.findall(r"^rule train:.*?resources: .*?gpus=(\d)", output, re.MULTILINE | re.DOTALL)
    assert sorted(asked) == ["1", "4"]
