"""Jobs that a killed run of the workflow has left: the next one stops them, and no others."""

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from gigapipe import left_jobs

VERB = """#!{python}
import signal, sys, time
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("at work", flush=True)
time.sleep(60)
"""


@pytest.fixture
def job(tmp_path):
    """Starts a shell, for some results, that starts a verb; whether the verb is `deaf` to SIGTERM."""
    begun = []

    def start(results: str, deaf: bool = False) -> subprocess.Popen:
        folder = tmp_path / str(len(begun))
        folder.mkdir()
        (folder / "gigapipe").write_text(VERB.format(python=sys.executable, deaf=deaf))
        (folder / "gigapipe").chmod(0o755)
        environment = os.environ | {left_jobs.RUN: f"17@{socket.gethostname()}:{tmp_path / results}"}
        command = ["bash", "-c", "./gigapipe; true"]
        begun.append(
            subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        )
        assert begun[-1].stdout.readline() == b"at work\n"
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_jobs_of_a_killed_run_are_stopped_and_those_of_others_are_not(job, tmp_path, caplog):
    caplog.set_level("INFO", "gigapipe")
    killed, other = job("results"), job("other results")
    assert left_jobs.stop(tmp_path / "results", patience=20) == []
    killed.wait(timeout=20)
    assert other.poll() is None and "stopping the jobs of a killed run" in caplog.text


def test_a_suspended_job_is_stopped_too(job, tmp_path):
    shell = job("results")
    (verb,) = psutil.Process(shell.pid).children()
    verb.suspend()
    assert left_jobs.stop(tmp_path / "results", patience=20) == []


ENDS = """
import time
from gigapipe.left_jobs import end_with_run
end_with_run()
print("at work", flush=True)
time.sleep(60)
"""


def test_a_job_ends_with_the_run_that_started_it():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "snakemake"]) as run:
        environment = os.environ | {left_jobs.RUN: f"{run.pid}@{socket.gethostname()}:/w/results"}
        with subprocess.Popen([sys.executable, "-c", ENDS], env=environment, stdout=subprocess.PIPE) as verb:
            assert verb.stdout.readline() == b"at work\n"
            assert verb.poll() is None
            run.kill()
            assert verb.wait(timeout=20) == -signal.SIGTERM


def test_jobs_that_do_not_stop_are_named(job, tmp_path):
    shell = job("results", deaf=True)
    left = left_jobs.stop(tmp_path / "results", patience=0.5)
    assert shell.pid in left and len(left) == 2
