"""Ranks on two hosts, over a link that is slow and loses packets: the weights of one host; and the link's end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cohorts import training, weights
from launching import GIGAPIPE, ROOT, gigapipe
from requirements import missing

ENTER = str(ROOT / "tests/network/enter.sh")
# One machine's processes would find each other's memory, namespaces or not.
HOSTS = {"TEST_HOSTS": f"gigapipe-{os.getpid()}"}  # the first words of their names
BY_LINK = HOSTS | {"GLOO_SOCKET_IFNAME": "link0", "UCX_NET_DEVICES": "link0", "UCX_TLS": "tcp,self"}
TIMEOUT, ENDED = 10, 40  # seconds: what ranks are told, and by when docs/clusters.md says that all have ended


@pytest.fixture
def link() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, ROOT / "tests/network/link.py", "10", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | HOSTS,
    ) as process:
        try:
            if process.stdout.readline() != b"up\n":
                process.wait()
                missing(f"no two hosts here: {process.stderr.read().decode().splitlines()[-1]}")
            yield process
        finally:
            process.terminate()


def start(*arguments) -> subprocess.Popen:
    """`mpiexec gigapipe …` with one rank on each of the two hosts."""
    return subprocess.Popen(
        [ENTER, "10.77.0.1", "mpiexec", "-launcher", "ssh", "-launcher-exec", ENTER, "-hosts", "10.77.0.1,10.77.0.2",
         "-ppn", "1", "-n", "2", GIGAPIPE, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | BY_LINK,
    )  # fmt: skip


@pytest.mark.parametrize("transport", ["mpi", "torch"])
def test_two_hosts_train_to_the_weights_of_one_and_a_cut_link_ends_both(small_cohort, link, tmp_path, transport):
    more = ["--transport", transport, "--batch", 4]  # few steps: each sends some hundred messages, one after another
    gigapipe(*training(small_cohort, tmp_path / "one/model.pt", (1, 2, 1), 1, more=more), ranks=2)
    near = tmp_path / "near"
    more += ["--stage", near]
    with start(*training(small_cohort, tmp_path / "two/model.pt", (1, 2, 1), 1, more=more)) as process:
        output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert re.search(r"rank 0 on host-1: processes \d+\n", output) and "rank 1 on host-2" in output, output
    expected, found = (weights(tmp_path / folder / "model.pt") for folder in ("one", "two"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(near.glob("*/c/*/*/*"))  # the chunks that were read

    path = tmp_path / "cut/model.pt"
    arguments = training(small_cohort, path, (1, 2, 1), 1000, more=[*more, "--timeout", f"{TIMEOUT}s"])
    with start(*arguments) as process:
        try:
            while not list(path.parent.glob("checkpoints/*.pt")):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
            link.send_signal(signal.SIGUSR1)
            cut = time.monotonic()
            while time.monotonic() - cut < ENDED and (left := training_processes(path)):
                time.sleep(0.2)
            took = time.monotonic() - cut
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            output = process.communicate()[0]
    print(f"{transport}: both ended {took:.0f} s after the link was cut, of ranks that wait for {TIMEOUT} s")
    assert not left
    for rank, other in ((0, 1), (1, 0)):
        said = Path(f"{path}.failed/rank-{rank:04}.txt").read_text(encoding="utf-8")
        assert f"rank {rank} of 2 on host-{rank + 1} failed in " in said
        assert re.search(rf"last in .* epoch \d+; no answer from rank {other} on host-{other + 1}\n", said), (
            said + output
        )


def training_processes(output: Path) -> list[int]:
    found = subprocess.run(["pgrep", "--full", f"gigapipe train .*{output}"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]
