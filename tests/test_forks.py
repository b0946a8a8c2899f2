"""A fork in the place of a new process is that process: its folder, variables, files, exit status and end."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from forks import with_forks

pytestmark = pytest.mark.slow


def start(folder, *arguments, **more) -> subprocess.Popen:
    command, environment = ["gigapipe", *map(str, arguments)], with_forks(dict(os.environ), "gigapipe") | more
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def fork_of(process: subprocess.Popen) -> psutil.Process:
    """It works in that process's folder, and its own command is the server's."""
    folder, begun = os.readlink(f"/proc/{process.pid}/cwd"), time.monotonic()
    while time.monotonic() < begun + 30:
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # one that has just ended
                if other.pid != process.pid and "server.py" in " ".join(other.cmdline()) and other.cwd() == folder:
                    return other
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    raise AssertionError("it is no fork")


@pytest.mark.parametrize("more", [{}, {"LC_ALL": "POSIX"}], ids=["a fork", "another locale: a new process"])
def test_what_it_says_and_how_it_ends_come_through(tmp_path, more):
    done = start(tmp_path, "evaluate", "--predictions", "none.tsv", "--trainings", "none.json", "--output", "é", **more)
    output, said = done.communicate()
    assert (done.returncode, output) == (1, "")
    assert said.startswith("gigapipe: predictions none.tsv: cannot be read"), said
    helped = start(tmp_path, "predict", "--help", COLUMNS="50", **more)
    text, _ = helped.communicate()
    assert helped.returncode == 0 and max(map(len, text.splitlines()[:20])) <= 60


PROGRAM = "import json, sys; print(json.dumps([__name__, sys.argv, sys.path[0]])); sys.exit(3)"


def test_a_program_in_python_finds_what_it_finds_as_a_process(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/program.py").write_text(PROGRAM)
    for program in (["-c", PROGRAM], ["-P", "-c", PROGRAM], ["theirs/program.py"]):
        done = [
            subprocess.run([*start, *program, "1", "é"], env=environment, cwd=tmp_path, capture_output=True, text=True)
            for start, environment in ((["python"], with_forks(dict(os.environ), "python")), ([sys.executable], None))
        ]
        assert done[0].stdout == done[1].stdout and done[0].returncode == done[1].returncode == 3, done


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_as_the_process_for_which_it_stands(tmp_path, monkeypatch, number):
    monkeypatch.setenv("PYTHONHASHSEED", "6640")  # as Dask leaves it
    pipe = tmp_path / "phantoms"
    os.mkfifo(pipe)  # it waits there for somebody who reads it
    process = start(tmp_path, "predict", "--model", pipe, "--folds", pipe, "--pyramids", tmp_path, "--output", "x.tsv")
    fork = fork_of(process)
    time.sleep(0.3)
    assert process.poll() is None and fork.is_running()
    process.send_signal(number)
    assert process.wait(20) == -number
    psutil.wait_procs([fork], 20)
    assert not fork.is_running()
