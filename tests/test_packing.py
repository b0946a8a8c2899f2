"""Jobs that share a node, by an executor whose jobs are processes of this machine."""

import collections
import os
import signal
from pathlib import Path

import pytest
from projects import snakemake, start, watched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SNAKEFILE = """
import gigapipe.packing
gigapipe.packing.SETTLE = 0.5
if workflow.is_main_process:
    gigapipe.packing.share_nodes()

rule all:
    input: expand("made/{one}", one=list("abcde"))

rule make:
    output: "made/{one}"
    resources: per_node=3, node_launcher="env ON_A_NODE=yes"
    shell:
        "echo {wildcards.one} $ON_A_NODE >> ran; test ! -e {wildcards.one}.bad; touch {output}; "
        "test ! -e {wildcards.one}.hangs || (ps -o pgid= $$ > hanging; sleep 60)"
"""
# A job is a session of its own, and its id that process and where its exit status will be.
SUBMIT = """#!/bin/bash
echo "$1" >> submitted
setsid bash -c 'bash "$0" > "$0.out" 2>&1; echo $? > "$0.over"' "$1" < /dev/null > /dev/null 2>&1 &
echo "$!:$1"
"""
STATUS = """#!/bin/bash
kill -0 "${1%%:*}" 2> /dev/null && { echo running; exit; }
[ "$(cat "${1#*:}.over")" = 0 ] && echo success || echo failed
"""


@pytest.fixture
def cluster(tmp_path) -> list:
    """Snakemake's arguments, and in the folder what they need."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    for name, script in (("submit", SUBMIT), ("status", STATUS)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o700)
    executor = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd", "./submit"]
    executor += ["--cluster-generic-status-cmd", "./status", "--seconds-between-status-checks", 1]
    return ["--jobs", 9, "--keep-going", "--latency-wait", 5, *executor]


def times_ran(folder: Path) -> dict[str, int]:
    """How often each job has begun, which it did on a node."""
    lines = (folder / "ran").read_text().splitlines()
    assert all(line.endswith(" yes") for line in lines)
    return dict(collections.Counter(line[0] for line in lines))


def test_what_fails_or_is_killed_on_a_node_takes_nothing_else_with_it(cluster, tmp_path):
    (tmp_path / "b.bad").touch()
    (tmp_path / "d.hangs").touch()
    killed = []

    def kill() -> None:
        if not killed and (tmp_path / "hanging").exists() and len(list(tmp_path.glob("made/*"))) == 4:
            group = (tmp_path / "hanging").read_text().strip()
            others = list(tmp_path.glob(".snakemake/tmp.*/node-*/*.ended"))
            if group and len(others) == 4:
                (tmp_path / "d.hangs").unlink()
                os.killpg(int(group), signal.SIGKILL)
                killed.append(group)

    process = start(tmp_path, *cluster, "--retries", 1)
    output = watched(process, kill)
    assert process.returncode and killed, output
    assert {path.name for path in tmp_path.glob("made/*")} == set("acde"), output
    assert times_ran(tmp_path) == {"a": 1, "b": 2, "c": 1, "d": 2, "e": 1}
    assert 3 <= len((tmp_path / "submitted").read_text().splitlines()) <= 4  # five jobs, two of them again

    (tmp_path / "b.bad").unlink()
    snakemake(tmp_path, *cluster)
    assert times_ran(tmp_path) == {"a": 1, "b": 3, "c": 1, "d": 2, "e": 1}
