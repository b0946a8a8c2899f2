"""The embedded default, narrower, in a fresh copy of the project; killed half-way; its known answer, its report."""

import hashlib
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
import yaml
from forks import with_forks
from projects import activated, fresh_copy, make_results, plan, processes_of, shown_commands, snakemake, start, watched
from rocrate.rocrate import ROCrate

from gigapipe.pyramids.maps import read_map
from gigapipe.slides.phantom import cohort

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> dict:
    """The default at its finest and its coarsest, run to the end; of a smaller network and in three folds, faster.

    One training was killed after its first epoch.
    """
    project = fresh_copy(tmp_path_factory.mktemp("demo"))
    config = yaml.safe_load((project / "config/config.yaml").read_text())
    config["resolutions"] = [config["resolutions"][0], config["resolutions"][-1]]
    config["training"] |= {"network": "resnet10", "width": 16, "learning_rate": 0.004, "epochs": 4}
    config["folds"]["number"], config["maps"] = 3, 1
    (project / "config/config.yaml").write_text(yaml.safe_dump(config))
    make_results(project, [2.0, 48.0], **config["phantom"])
    killed = []

    def kill() -> None:
        if not killed and (found := list(project.glob("results/2um/fold-*/checkpoints/*.pt"))):
            killed.append(found[0].parent.parent)
            for job in processes_of(project, f"{killed[0].relative_to(project)}/model.pt"):
                if job.name().startswith(("mpiexec", "hydra")):
                    job.kill()

    process = start(project, "--cores", 2, forked=["gigapipe"])
    output = watched(process, kill)
    assert killed and process.returncode != 0, output
    assert not (project / "results/comparison.tsv").exists()
    finished = {p: p.stat().st_mtime_ns for p in project.glob("results/*um/fold-*/model.pt")}
    snakemake(project, "--cores", 2)
    return {"project": project, "killed": killed[0], "finished": finished}


def test_the_known_answer_is_found(demo):
    project = demo["project"]
    table = pd.read_csv(project / "results/comparison.tsv", sep="\t").set_index("mpp")
    print((project / "results/comparison.md").read_text())
    assert list(table.index) == [48, 2]
    assert table.loc[2, "auc"] >= 0.85
    assert abs(table.loc[48, "auc"] - 0.5) <= 0.2
    assert (table["slides"] == len(cohort(patients=40))).all()
    assert (table["ranks"] == [1, 2]).all()
    assert (table["seconds_per_step"] > 0).all() and (table["peak_memory_per_rank_mb"] > 100).all()
    held_out = pd.concat(pd.read_csv(p, sep="\t") for p in project.glob("results/2um/fold-*/predictions.tsv"))
    assert sorted(held_out.loc[held_out["part"] == "test", "slide"]) == sorted(p.slide for p in cohort(patients=40))
    assert (table["brier"] < 0.5).all() and (table["sent_bytes_per_step"] > 0).tolist() == [False, True]
    assert np.isnan(table.loc[48, "delta"]) and table.loc[2, "p"] < 0.05 and table.loc[2, "coarser"] == 48


def test_the_killed_training_went_on_and_nothing_done_was_done_again(demo):
    project = demo["project"]
    log = project / "results/logs/train/2um" / f"{demo['killed'].name}.log"
    assert "resumed after epoch" in log.read_text()
    assert demo["finished"]
    assert all(path.stat().st_mtime_ns == then for path, then in demo["finished"].items())
    assert plan(project) == {}


def test_another_slide_remakes_what_follows_from_it_and_a_touched_one_nothing(demo):
    project = demo["project"]
    slide = sorted(project.glob("results/phantom/*.svs"))[3]
    before, text = slide.stat(), slide.read_bytes()
    slide.touch()
    try:
        assert plan(project) == {}
        slide.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
        jobs = {"train": 6, "predict": 6, "evaluate": 1, "map": 2, "page": 1, "crate": 1, "all": 1}
        assert plan(project) == {"pyramid": 1, "survey": 1, **jobs}
    finally:
        slide.write_bytes(text)
        os.utime(slide, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert plan(project, "-R", "train") == jobs


def test_the_report_holds_table_and_figure(demo):
    project = demo["project"]
    snakemake(project, "--report", "report.html")
    page = (project / "report.html").read_text()
    assert all(f"comparison.{kind}" in page for kind in ("tsv", "html", "png"))
    assert (project / "results/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_holds_the_table_and_the_maps_of_what_was_scored(demo):
    results = demo["project"] / "results"
    page = (results / "report.html").read_text()
    for row in pd.read_csv(results / "comparison.tsv", sep="\t").itertuples():
        assert f"<td>{row.auc:.3f} ({row.auc_low:.3f}–{row.auc_high:.3f})" in page
        for slide in pd.read_csv(results / f"{row.mpp:g}um/maps/maps.tsv", sep="\t").itertuples():
            evidence = read_map(results / f"{row.mpp:g}um/maps" / slide.slide).evidence("solid")
            assert 1 / (1 + np.exp(-evidence.mean())) == pytest.approx(slide.score, abs=1e-4)
            assert f"Map of slide {slide.slide}" in page
    assert "training" in page and "confounder" in page  # runtimes, config
    assert len(list((results / "figures").glob("*.svg"))) == 6


def test_the_record_of_provenance_names_every_slide_and_network(demo):
    results = demo["project"] / "results"
    crate = ROCrate(results)
    slides = {one["name"]: one["md5"] for one in crate.get("#run")["object"] if one.id.startswith("#slide-")}
    files = {slide: results / f"phantom/{slide}.svs" for slide in slides}
    assert sorted(slides) == sorted(slide.slide for slide in cohort(patients=40))
    assert slides == {slide: hashlib.md5(file.read_bytes()).hexdigest() for slide, file in files.items()}
    networks = sorted(path.relative_to(results).as_posix() for path in results.glob("*um/fold-*/model.pt"))
    assert sorted(one.id for one in crate.data_entities if one.id.endswith("model.pt")) == networks
    table = pd.read_csv(results / "comparison.tsv", sep="\t")
    assert {crate.get(path)["identifier"] for path in networks} == set(" ".join(table["networks"]).split())


def test_the_commands_of_the_reports_page_run(demo):
    environment = with_forks(activated(), "gigapipe")
    commands = shown_commands("docs/report.md")
    assert [command.split()[1] for command in commands] == ["report", "map", "crate"]
    for command in commands:
        subprocess.run(["bash", "-c", command], cwd=demo["project"], env=environment, check=True)
    assert (demo["project"] / "maps/PH-000-A/image.zarr").is_dir()
