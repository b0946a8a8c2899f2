"""A cohort of the GDC through the workflow, over a network that fails, killed and started again."""

import hashlib
import random
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from gdc_server import Archive, Fault, serving
from launching import MORE, gigapipe, kill
from projects import fresh_copy, snakemake, start

pytestmark = pytest.mark.slow
KINDS = ["cut", "reset", "503", "429", "500", "short", "wrong", "json", "html", "no_range", "stall"]


def archive_of(count: int, shared: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Of each of `count` slides of TCGA lung, by its genuine name: a real slide, and its project."""
    pixels = (shared / "data/slides/CMU-1-Small-Region.svs").read_bytes()
    folder.mkdir()
    slides = {}
    for path in sorted((shared / "data/gdc/manifests").iterdir()):
        project = path.name[:9].upper().replace("_", "-")
        for name in sorted(pd.read_csv(path, sep="\t")["filename"])[: count // 2]:
            (folder / name).write_bytes(pixels + name.encode())  # so that no two are alike
            slides[name] = folder / name, project
    return slides


def configured(project: Path, url: str, **more) -> list[str]:
    config = {
        "slides": "resources/slides.tsv",
        "cohort": {"projects": ["TCGA-LUAD", "TCGA-LUSC"]},
        "gdc": {"api": url, "timeout": 3},
        "resolutions": [{"mpp": 8, "canvas": 100, "mesh": [1, 1, 1]}],
    }
    (project / "own.yaml").write_text(yaml.safe_dump(config | more))
    return ["--configfile", "own.yaml", "--cores", "4"]


def test_sixty_slides_arrive_whole_through_faults_and_kills(shared, tmp_path):
    slides = archive_of(60 * MORE, shared, tmp_path / "archive")
    project = fresh_copy(tmp_path / "project")
    archive = Archive(bytes_per_second=10_000_000)
    chance = random.Random(0)
    ids = {}
    for name, (path, of_project) in slides.items():
        ids[name] = archive.add(path, name, project=of_project)
        for _ in range(chance.choice([0, 1, 1, 2])):
            fault = Fault(chance.choice(KINDS), share=chance.uniform(0, 0.9), retry_after=1, seconds=20)
            archive.faults[ids[name]].append(fault)
    with serving(archive) as url:
        arguments = configured(project, url)
        _, output = snakemake(project, *arguments)
        assert "check it, and run the same command again" in output
        folder = project / "resources/slides"
        for share in (0.25, 0.6):
            process = start(project, *arguments, "slides")
            while len(list(folder.glob("TCGA*.svs"))) < share * len(slides):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.05)
            kill(process)
        for path in folder.glob("TCGA*.svs"):
            assert path.read_bytes() == slides[full_name(path, slides)][0].read_bytes()
        _, output = snakemake(project, *arguments, "slides")
        assert f"{len(slides)} slides to download" not in output and "slides to download" in output
        requests = len(archive.requests)
        snakemake(project, *arguments, "slides")
        assert len(archive.requests) == requests
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name.split('.')[0]}.svs" for name in slides)
    for path in folder.iterdir():
        expected = slides[full_name(path, slides)][0].read_bytes()
        assert hashlib.md5(path.read_bytes()).digest() == hashlib.md5(expected).digest()
    twice = sum(archive.sent_twice(file_id) for file_id in ids.values())
    forced = sum(archive.forced(file_id) for file_id in ids.values())
    total = sum(path.stat().st_size for path, _ in slides.values())
    struck = sum(request.fault is not None for request in archive.requests)
    print(f"{struck} faults, {total / 1e6:.1f} MB; again {forced / 1e6:.1f} MB as forced, {twice / 1e6:.2f} MB else")
    assert struck > 40 * MORE
    assert twice < 2 * 4 * 500_000  # what was on its way to each of four when they were killed, twice


def full_name(path: Path, slides: dict) -> str:
    return next(name for name in slides if name.startswith(f"{path.stem}."))


def test_slides_that_are_not_kept_are_fetched_once(shared, tmp_path):
    slides = archive_of(2, shared, tmp_path / "archive")
    project = fresh_copy(tmp_path / "project")
    archive = Archive()
    for name, (path, of_project) in slides.items():
        archive.add(path, name, project=of_project)
    with serving(archive) as url:
        arguments = configured(project, url, keep_slides=False)
        snakemake(project, *arguments)
        snakemake(project, *arguments, "survey")
        assert not list((project / "resources/slides").glob("*.svs"))
        logs = [path.read_text() for path in (project / "results/logs/pyramid").iterdir()]
        assert len(logs) == 2 and all("rectangles computed again, all pixels identical" in log for log in logs)
        requests = len(archive.requests)
        _, output = snakemake(project, *arguments, "survey", "--forcerun", "survey", "--printshellcmds")
        assert "rule survey" in output and "rule download" not in output and len(archive.requests) == requests


def test_the_whole_of_tcga_lung_is_planned_from_its_sheet(shared, tmp_path):
    project = fresh_copy(tmp_path)
    manifests = sorted((shared / "data/gdc/manifests").iterdir())
    files = [f"--manifest={path.name[:9].upper()}={path}" for path in manifests]
    gigapipe("gdc", "sheet", project / "resources/tcga-lung/slides.tsv", *files)
    begin = time.monotonic()
    _, output = snakemake(project, "-n", "--quiet", "rules", "--configfile", "config/tcga-lung.yaml")
    print(f"planned in {time.monotonic() - begin:.1f} s")
    counts = dict(line.split() for line in output.splitlines() if line.startswith(("download ", "pyramid ", "train ")))
    assert counts == {"download": "1053", "pyramid": "1053", "train": "40"}
