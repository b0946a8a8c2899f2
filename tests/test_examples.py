"""The programs in docs/examples run as they are, on small inputs, and give what they promise."""

import re
import runpy
import subprocess
import sys

import pandas as pd
import pytest
from launching import EXIT_GLOO, ROOT
from sklearn.metrics import roc_auc_score

EXAMPLES = ROOT / "docs/examples"


@pytest.mark.slow
def test_a_unet_of_monai_on_two_ranks_has_the_gradients_of_the_undivided_image(tmp_path):
    example = EXAMPLES / "monai_unet.py"
    (tmp_path / "run.py").write_text(
        f"import runpy\nrunpy.run_path({str(example)!r}, run_name='__main__')\n{EXIT_GLOO}"
    )
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*ranks, "run.py", "--size", "104", "--compare"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    losses = re.findall(r"loss (\d\.\d+)", done.stdout)
    assert done.stdout.count("(52, 104) px of (104, 104)") == 2
    assert len(losses) == 3 and len(set(losses)) == 1, done.stdout
    (worst,) = re.findall(r"differ by at most (\S+) of the largest", done.stdout)
    assert float(worst) < 1e-10


@pytest.mark.slow
def test_whole_slides_are_classified_from_python(tmp_path):
    classify = runpy.run_path(str(EXAMPLES / "whole_slides.py"))["classify"]
    found = classify(tmp_path, patients=6, mpp=8, canvas=52, epochs=1)
    scores = pd.read_csv(tmp_path / "predictions.tsv", sep="\t")
    assert sorted(scores["slide"]) == sorted(path.stem for path in (tmp_path / "slides").iterdir())  # each once
    assert (scores.groupby("patient")["fold"].nunique() == 1).all() and scores["fold"].nunique() == 3
    aucs = [roc_auc_score(of["label"] == "solid", of["score"]) for _, of in scores.groupby("fold")]
    assert found.value == pytest.approx(sum(aucs) / 3)
