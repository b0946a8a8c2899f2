"""The road in short: six patients' phantoms to a table, with a config that says no canvas and no mesh."""

import pandas as pd
import pytest
from projects import configured, fresh_copy, make_results, snakemake


@pytest.mark.check
def test_six_phantoms_reach_a_table(tmp_path):
    project = fresh_copy(tmp_path / "project")
    make_results(project, [8.0], leave=1, patients=6)
    arguments = configured(
        project,
        phantom={"patients": 6},
        folds={"number": 3},
        resolutions=[{"mpp": 8}],
        training={"epochs": 1, "batch": 2, "network": "resnet10", "width": 8},
    )
    snakemake(project, "--cores", 2, *arguments, "--", "evaluated")
    (row,) = pd.read_csv(project / "results/comparison.tsv", sep="\t").itertuples()
    (chosen,) = pd.read_csv(project / "results/canvases.tsv", sep="\t").itertuples()
    assert row.mpp == 8 and row.canvas == chosen.canvas and chosen.whole >= 0.95 * chosen.slides
    assert 0 <= row.auc <= 1 and row.slides == len(list((project / "results/pyramids").iterdir()))
