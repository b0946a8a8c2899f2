"""The road in short: six patients' phantoms to a table and maps, with a config that says no canvas and no mesh, and
a network of the user's.

Nothing on it has a plain name, and the locale is POSIX.
"""

import json

import pandas as pd
import pytest
from projects import configured, fresh_copy, plan, snakemake

from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide

FOLDER = "a {slide} 'b' \"c\" é $(touch HARM) <results>"
NAME = "-{} {{a b}} 'c' \"d\" ü $(touch HARM) & =.svs"
MINE = """
from torch import nn

def block(inputs, channels):
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True))

def net(classes, width=8, name=""):
    body = [block(3, width), block(width, 2 * width), block(2 * width, 4 * width)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))
"""


@pytest.mark.check
def test_six_phantoms_reach_a_table(tmp_path, monkeypatch):
    project, folder = fresh_copy(tmp_path / "it's é"), tmp_path / FOLDER
    folder.mkdir()
    monkeypatch.setenv("LC_ALL", "POSIX")
    phantoms, rows = list({phantom.patient: phantom for phantom in cohort(patients=6)}.values()), []
    for phantom in phantoms:
        source = folder / NAME.format(phantom.slide)
        write_slide(source, render(phantom))
        rows.append(sheet_row(phantom) | {"source": source.name})
        if phantom is not phantoms[0]:  # which is left to Snakemake
            build_pyramid(source, folder / "results/pyramids" / phantom.slide, [8.0])
    pd.DataFrame(rows).to_csv(folder / "-my.tsv", sep="\t", index=False)
    arguments = [
        "--snakefile", project / "Snakefile", "--workflow-profile", project / "profiles/default", "--cores", 2,
        *configured(
            folder,
            slides="-my.tsv",
            folds={"number": 3},
            resolutions=[{"mpp": 8}],
            training={
                "epochs": 1,
                "batch": 2,
                "network": "mine é.py:net",
                "network_options": {"width": 4, "name": FOLDER},
            },
            maps=1,
        ),
    ]  # fmt: skip
    (folder / "mine é.py").write_text(MINE, encoding="utf-8")
    wanted = "--", "evaluated", "results/8um/maps"
    forked = "gigapipe", "snakemake"  # one that is asked of a slide is not worth a server of this locale
    snakemake(folder, *arguments, *wanted, forked=forked)
    (row,) = pd.read_csv(folder / "results/comparison.tsv", sep="\t").itertuples()
    (chosen,) = pd.read_csv(folder / "results/canvases.tsv", sep="\t").itertuples()
    assert row.mpp == 8 and row.canvas == chosen.canvas and chosen.whole >= 0.95 * chosen.slides
    assert 0 <= row.auc <= 1 and row.slides == len(list((folder / "results/pyramids").iterdir()))
    assert not list(tmp_path.rglob("HARM"))
    moved = folder.rename(tmp_path / "moved")
    assert "Nothing to be done" in snakemake(moved, *arguments, *wanted, forked=forked)[1]
    assert row.network.startswith("mine é.py:net, ") and ", width 4" in row.network
    assert len(pd.read_csv(moved / "results/8um/maps/maps.tsv", sep="\t")) >= 2
    settings = json.loads((moved / "results/8um/fold-0/training.json").read_text("utf-8"))["settings"]
    assert settings["network_options"]["name"] == FOLDER and settings["network_code"].startswith("sha256 ")
    (moved / "mine é.py").write_text(MINE + "\n# changed\n", encoding="utf-8")
    jobs = plan(moved, *arguments, *wanted, forked=forked)
    assert jobs["train"] == jobs["predict"] == 3 and "pyramid" not in jobs
