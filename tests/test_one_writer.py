"""Two at once: of two processes that would write the same, one does, and the other is told which one."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cohorts import same, training, weights
from launching import GIGAPIPE, ended, gigapipe
from projects import snakemake, start

from gigapipe import disks
from gigapipe.errors import Unavailable
from gigapipe.exit_status import AGAIN
from gigapipe.one_writer import Left, only_writer, writer_of
from gigapipe.pyramids import Pyramid
from gigapipe.slides.phantom import cohort, render, write_slide

HOLD = """
import sys, time
from gigapipe.one_writer import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `output`, in a folder of its own."""
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", HOLD, tmp_path / "output"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path / "elsewhere") as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_first_and_a_killed_one_holds_nobody_up(holder, tmp_path):
    output = tmp_path / "output"
    with pytest.raises(Unavailable) as refused, only_writer(output):
        pass
    host = os.uname().nodename
    pattern = rf"{output}: another process \(process {holder.pid} on {host}, since .*\) is writing it; wait until .*"
    assert re.fullmatch(pattern, str(refused.value))
    assert refused.value.holder["folder"] == str(tmp_path / "elsewhere")
    holder.kill()
    holder.wait()
    assert (tmp_path / ".output.lock").exists()  # what a kill leaves
    with only_writer(output), only_writer(output):
        pass
    assert not (tmp_path / ".output.lock").exists()


def test_who_is_writing_is_known_and_not_disturbed(holder, tmp_path):
    output = tmp_path / "output"
    assert writer_of(output).startswith(f"process {holder.pid} on {os.uname().nodename}, since ")
    assert writer_of(tmp_path / "another") is None
    with pytest.raises(Unavailable, match=f"process {holder.pid} on"), only_writer(output):
        pass
    holder.kill()
    holder.wait()
    assert writer_of(output) is None and (tmp_path / ".output.lock").exists()


def test_without_locks_the_living_of_this_host_are_known_by_name(holder, tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    monkeypatch.setattr(disks, "_TOLD", set())
    with pytest.raises(Unavailable, match=f"process {holder.pid} on"), only_writer(tmp_path / "output"):
        pass
    holder.kill()
    holder.wait()
    with only_writer(tmp_path / "output"):
        assert "its file system does not support locks" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


def test_what_another_host_has_left_is_respected_where_it_is_to_be_certain(tmp_path):
    lock, output = tmp_path / ".output.lock", tmp_path / "output"
    left = json.dumps({"host": "login2", "folder": "/w", "process": 17, "since": 1e9})
    lock.write_text(left)
    line = rf"{output}: process 17 on login2, since .*, runs, or was killed: .* remove {lock} if that process has ended"
    with pytest.raises(Left, match=line), only_writer(output, "runs", of_all_hosts=True):
        pass
    assert lock.read_text() == left
    with only_writer(output):  # whose lock the file system lets go of
        pass
    with only_writer(output, of_all_hosts=True):
        pass


def begun(process: subprocess.Popen, mark: Path) -> None:
    while not mark.exists() or not mark.stat().st_size:  # until it names its writer
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_of_two_builds_of_a_pyramid_one_is_refused_and_the_slide_is_not_left_out(tmp_path):
    slide = cohort(seed=3, patients=1, folder=str(tmp_path))[0]
    write_slide(Path(slide.source), render(slide))
    command = ["pyramid", slide.source, tmp_path / "p", "--mpp", 2, "--leave-out"]
    with subprocess.Popen([GIGAPIPE, *map(str, command)], stderr=subprocess.PIPE, text=True) as first:
        begun(first, tmp_path / ".p.lock")
        os.kill(first.pid, signal.SIGSTOP)
        second = gigapipe(*command, check=False)
        os.kill(first.pid, signal.SIGCONT)
        assert first.wait() == 0, first.stderr.read()
    assert second.returncode == AGAIN
    assert re.fullmatch(r"gigapipe: .*/p: another process \(process \d+ on .*\) is writing it; .*\n", second.stdout)
    assert (Pyramid(tmp_path / "p").array(2.0)[:] < 255).any()
    assert {path.name for path in tmp_path.iterdir()} == {"p", Path(slide.source).name}


def test_of_two_trainings_of_a_model_one_is_refused_and_the_other_not_disturbed(small_cohort, tmp_path):
    arguments = training(small_cohort, tmp_path / "a/model.pt", (1, 2, 1), epochs=8)
    command = ["mpiexec", "-n", "2", GIGAPIPE, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as first:
        begun(first, tmp_path / "a/.model.pt.lock")
        ranks = psutil.Process(first.pid).children(recursive=True)
        for rank in ranks:
            rank.suspend()
        second = gigapipe(*arguments, ranks=2, check=False)
        alone = gigapipe(*training(small_cohort, tmp_path / "a/model.pt"), check=False)
        for rank in ranks:
            rank.resume()
        output, _ = first.communicate()
    assert first.returncode == 0, output
    for refused in (second, alone):
        assert refused.returncode == AGAIN and "Traceback" not in refused.stdout, refused.stdout
        assert refused.stdout.count("a/model.pt: another process (process ") == 1, refused.stdout
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.pt", "training.json"]
    gigapipe(*training(small_cohort, tmp_path / "b/model.pt", (1, 2, 1), epochs=8), ranks=2)
    assert same(weights(tmp_path / "a/model.pt"), weights(tmp_path / "b/model.pt"))


def test_a_workflow_beside_one_with_the_same_results_is_refused_and_after_its_kill_goes_on(project, tmp_path):
    arguments = ["--cores", 1, "--", "results/phantom/slides.tsv"]

    def refused(holder: int) -> None:
        code, output = snakemake(project, *arguments, check=False)
        there = rf"results/workflow: another process \(process {holder} on .*\) is running the workflow there"
        line = f"{there}; wait until it has finished"
        assert code == 1 and re.search(f"^.*{line}$", output, re.MULTILINE), output
        assert "--unlock" not in output

    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-c", HOLD, project / "results/workflow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path / "elsewhere") as other:
        assert other.stdout.readline() == b"held\n"
        refused(other.pid)
        other.kill()
    lock = project / "results/.workflow.lock"
    lock.unlink()
    with ended(start(project, *arguments, forked=["gigapipe"])) as process:
        begun(process, lock)
        while not lock.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        refused(process.pid)
    assert lock.exists()  # what the kill has left
    snakemake(project, *arguments)
    assert not lock.exists()
