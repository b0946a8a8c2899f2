"""From a cohort's name to verified slides, against a server that behaves, and misbehaves, as the GDC's does."""

import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from gdc_server import Archive, Fault, name_of, serving
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.evaluation.folds import make_folds, splits
from gigapipe.evaluation.weaknesses import site_reader
from gigapipe.exit_status import AGAIN, NEVER
from gigapipe.gdc.barcodes import parse_barcode
from gigapipe.gdc.client import PAGE
from gigapipe.gdc.cohort import from_manifests, site_names
from gigapipe.slides.disk_space import Wanted, announce, check_disk_space
from gigapipe.slides.download import NotThere, download
from gigapipe.slides.sheet import read_sheet

pytestmark = pytest.mark.slow

LUAD = "tcga_luad_gdc_manifest.2025-05-14.223938.txt"
LUSC = "tcga_lusc_gdc_manifest.2025-05-15.112435.txt"
SOCKET = 8 << 20  # what may be on its way when a client is killed: the buffers of two sockets


@pytest.fixture(scope="module")
def manifests(shared) -> dict[str, Path]:
    return {"TCGA-LUAD": shared / "data/gdc/manifests" / LUAD, "TCGA-LUSC": shared / "data/gdc/manifests" / LUSC}


@pytest.fixture(scope="module")
def slide(shared) -> Path:
    return shared / "data/slides/CMU-1-Small-Region.svs"


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "name, found",
    [
        ("TCGA-38-4631-01Z-00-DX1.5e0c873a-9c4c-4e0b-bf2e-e3cd8b760761.svs", ("38", "primary tumour", "diagnostic")),
        ("TCGA-A7-A0CE-11A-01-TS1.svs", ("A7", "normal tissue", "top")),
        ("TCGA-A7-A0CE-06A-02-BSB", ("A7", "metastasis", "bottom")),
        ("HCM-BROD-0002-C71-11A-01-S1-HE.5e0c873a-9c4c-4e0b-bf2e.svs", ("BROD", "normal tissue", "unknown")),
        ("BLGSP-71-06-00001-01A-01-S1.svs", ("unknown", "primary tumour", "unknown")),
        ("C3L-00001-21.5e0c873a-9c4c-4e0b-bf2e-e3cd8b760761.svs", ("unknown", "unknown", "unknown")),
    ],
)
def test_a_barcode_tells_patient_site_and_kind(name, found):
    barcode = parse_barcode(name)
    assert (barcode.site, barcode.sample_type, barcode.kind) == found
    assert name.startswith(barcode.slide) and barcode.slide.startswith(barcode.patient)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../x.svs",
        "/etc/passwd",
        "TCGA-38-4631-01Z-00-DX1/../../x.svs",
        "TCGA-38-4631-01Z-00-DX1.a/../x.svs",
        "TCGA-38-4631-01Z-00-DX1\0.svs",
        "TCGA-38-4631-01Z-00-DX1." + "a" * 300 + ".svs",
        "TCGA-38-4631-01Z-00-DX1.ä.svs",
        "TCGA-38-4631-01A-11R-0123-07.bam",
    ],
)
def test_what_is_no_slide_s_barcode_is_named(name):
    with pytest.raises(InputError, match="neither the name of a TCGA slide"):
        parse_barcode(name)


def test_a_query_makes_a_sheet_of_every_page_and_leaves_out_what_is_no_slide(tmp_path):
    archive = Archive()
    count = PAGE + 20
    for i in reversed(range(count)):
        project = "TCGA-LUAD" if i % 2 else "TCGA-LUSC"
        archive.add(None, name_of(i), md5=f"{i:032x}", size=1000 + i, project=project, site=f"Hospital  {i % 7}")
    for hostile in ("../../x.svs", "/abs.svs", "TCGA-05-0001-01Z-00-DX1\0.svs", "a" * 300 + ".svs", "führer.svs"):
        archive.add(None, hostile, md5="0" * 32, size=1)
    archive.add(None, name_of(9001), md5="0" * 32, size=1, experimental_strategy="Tissue Slide")
    archive.add(None, name_of(9002), md5="0" * 32, size=1, access="controlled")
    archive.add(None, name_of(9003), md5="0" * 32, size=1, project="TCGA-BRCA")
    sheet = tmp_path / "slides.tsv"
    with serving(archive) as url:
        asked = ["gdc", "query", sheet, "--project", "TCGA-LUAD", "--project", "TCGA-LUSC", "--api", url]
        done = gigapipe(*asked)
        first = sheet.read_text().splitlines()
        gigapipe(*asked)
    assert done.stdout.count("excluded: ") == 5 and f"{count} slides" in done.stdout
    for said in (done.stdout, first[0]):
        assert "excluded 1 frozen slide, all slides of 1 patient (--strategy all includes them)" in said
    assert re.match(r"# gigapipe \S+, 20\d\d-\S+Z: http\S+ was queried .*TCGA-LUAD, TCGA-LUSC", first[0])
    assert first[1:] == sheet.read_text().splitlines()[1:]
    table = read_sheet(sheet)
    assert list(table["slide"]) == [f"TCGA-05-{i:04d}-01Z-00-DX1" for i in range(count)]
    row = table.iloc[7]
    assert dict(row) == {
        "slide": "TCGA-05-0007-01Z-00-DX1",
        "patient": "TCGA-05-0007",
        "site": "Hospital 0",
        "label": "TCGA-LUAD",
        "source": row["source"],
        "sample_type": "primary tumour",
        "kind": "diagnostic",
        "filename": name_of(7),
        "md5": f"{7:032x}",
        "size": "1007",
    }
    assert re.fullmatch(r"gdc:[0-9a-f-]{36}", row["source"])


def test_labels_may_be_sample_types(tmp_path):
    archive = Archive()
    for i in range(4):
        kind = "01A-01-TS1" if i % 2 else "11A-01-TS1"
        archive.add(None, name_of(i, kind), md5="0" * 32, size=1, experimental_strategy="Tissue Slide")
    with serving(archive) as url:
        asked = ["--project", "TCGA-LUAD", "--strategy", "Tissue Slide", "--label", "sample_type"]
        gigapipe("gdc", "query", tmp_path / "a.tsv", *asked, "--api", url)
        gigapipe("gdc", "query", tmp_path / "b.tsv", *asked, "--class", "tumour=primary tumour", "--api", url)
        none = gigapipe("gdc", "query", tmp_path / "c.tsv", "--project", "TCGA-NONE", "--api", url, check=False)
    assert list(read_sheet(tmp_path / "a.tsv")["label"]) == ["normal tissue", "primary tumour"] * 2
    assert list(pd.read_csv(tmp_path / "b.tsv", sep="\t", comment="#")["label"]) == ["tumour"] * 2
    assert none.returncode == 1 and "TCGA-NONE" in none.stdout and not (tmp_path / "c.tsv").exists()


def test_labels_may_be_diagnoses_of_which_two_are_wanted(tmp_path):
    archive = Archive()
    found = ["Lobular carcinoma, NOS", "Infiltrating duct carcinoma, NOS", "Paget disease, mammary"]
    for i in range(6):
        archive.add(None, name_of(i), md5="0" * 32, size=1, project="TCGA-BRCA", diagnosis=found[i % 3])
    classes = [f"--class={name}={value}" for name, value in zip(("lobular", "ductal"), found, strict=False)]
    with serving(archive) as url:
        asked = ["--project", "TCGA-BRCA", "--label", "primary_diagnosis", *classes, "--api", url]
        gigapipe("gdc", "query", tmp_path / "slides.tsv", *asked)
    assert list(read_sheet(tmp_path / "slides.tsv")["label"]) == ["lobular", "ductal"] * 2


def test_genuine_manifests_become_honest_folds(manifests, shared, tmp_path):
    labels = shared / "data/gdc/labels/tcga-lung-sites.csv"
    files = [f"--manifest={label}={path}" for label, path in manifests.items()]
    gigapipe("gdc", "sheet", tmp_path / "slides.tsv", *files, "--sites", labels)
    report = gigapipe("folds", tmp_path / "slides.tsv", tmp_path).stdout
    print(report)
    sheet = read_sheet(tmp_path / "slides.tsv")
    assert (
        len(sheet) == 1053
        and sheet["patient"].nunique() == 956
        and set(sheet["site"]) <= set(site_names(labels).values())
    )
    table = pd.read_csv(tmp_path / "folds.tsv", sep="\t")
    for column in ("patient", "site"):
        assert (table.groupby(column)["fold"].nunique() == 1).all()
    share = pd.crosstab(table["fold"], table["label"], normalize="index")
    assert abs(share - table["label"].value_counts(normalize=True)).max().max() < 0.05
    assert "12 of 39 sites have slides of one label only" in report
    parts = pd.read_csv(tmp_path / "splits.tsv", sep="\t")
    assert (parts.groupby("held_out")["slide"].nunique() == 1053).all() and len(parts) == 4 * 1053
    assert (parts[parts["role"] == "test"]["slide"].value_counts() == 1).all()


@pytest.mark.parametrize("folds", [3, 5, 10])
def test_codes_of_sites_tell_the_label_and_only_folds_by_site_do_not(manifests, folds):
    sheet = from_manifests(manifests)
    assert sheet["site"].nunique() == 68
    for by, across in (("patient", 1.0), ("site", 0.5)):
        table = make_folds(sheet, folds, seed=1, by=by)
        # All but 1: some sites have one patient, of whom no other patient tells.
        assert site_reader(table, "patient") == pytest.approx(1.0, abs=0.002)
        assert site_reader(table, "fold") == pytest.approx(across, abs=0.002)
        share = pd.crosstab(table["fold"], table["label"], normalize="index")
        assert abs(share - table["label"].value_counts(normalize=True)).max().max() < 0.05
    assert set(splits(table)["role"]) == {"training", "validation", "test"}


def test_published_folds_are_taken_as_they_are(manifests, tmp_path):
    sheet = from_manifests(manifests)
    made = make_folds(sheet, 5, seed=3, by="patient")
    made.drop_duplicates("patient")[["patient", "fold"]].to_csv(tmp_path / "given.csv", index=False)
    sheet.to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    done = gigapipe("folds", tmp_path / "slides.tsv", tmp_path, "--given", tmp_path / "given.csv")
    assert "**Warning:** these folds share sites" in done.stdout
    pd.testing.assert_series_equal(pd.read_csv(tmp_path / "folds.tsv", sep="\t")["fold"], made["fold"])
    short = made.drop_duplicates("patient").iloc[1:]
    short[["patient", "fold"]].to_csv(tmp_path / "given.csv", index=False)
    done = gigapipe("folds", tmp_path / "slides.tsv", tmp_path, "--given", tmp_path / "given.csv", check=False)
    assert done.returncode == 1 and made["patient"][0] in done.stdout


def test_the_portal_s_own_sample_sheet_will_do(tmp_path):
    lines = ["File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"]
    for i in range(4):
        project = ("TCGA-LUAD", "TCGA-LUSC")[i % 2]
        lines.append(f"{i:08x}-0000-4000-8000-000000000000\t{name_of(i)}\tBiospecimen\tSlide Image\t{project}\tx\ty\tz")
    (tmp_path / "portal.tsv").write_text("\n".join(lines))
    gigapipe("gdc", "sheet", tmp_path / "slides.tsv", "--portal-sheet", tmp_path / "portal.tsv")
    table = read_sheet(tmp_path / "slides.tsv")
    assert list(table["label"]) == ["TCGA-LUAD", "TCGA-LUSC"] * 2 and list(table["site"]) == ["05"] * 4


FAULTS = {
    "cut": [Fault("cut", 0.6), Fault("cut", 0.1)],
    "reset": [Fault("reset", 0.6)],
    "503": [Fault("503"), Fault("500")],
    "429": [Fault("429", retry_after=1)],
    "short": [Fault("short")],
    "wrong": [Fault("wrong")],
    "json": [Fault("json")],
    "html": [Fault("cut", 0.5), Fault("html")],
    "no range": [Fault("cut", 0.5), Fault("no_range")],
    "stall": [Fault("stall", 0.5, seconds=30)],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_slide_arrives_through_any_fault_and_no_byte_twice(slide, tmp_path, kind):
    archive = Archive()
    file_id = archive.add(slide, name_of(1))
    archive.faults[file_id] = list(FAULTS[kind])
    target = tmp_path / "a.svs"
    with serving(archive) as url:
        download([f"{url}/data/{file_id}"], target, md5_of(slide), slide.stat().st_size, timeout=2)
    assert target.read_bytes() == slide.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]
    assert not archive.faults[file_id]
    assert archive.sent_twice(file_id) == 0
    if kind not in ("wrong", "no range"):
        assert archive.forced(file_id) == 0


def test_a_mirror_helps_out_and_is_verified_alike(slide, tmp_path):
    archive = Archive()
    file_id = archive.add(slide, name_of(1))
    with serving(archive) as url:
        archive.faults[f"/data/{file_id}"] = [Fault("cut", 0.5), *[Fault("503")] * 9]
        common = ["--filename", name_of(1), "--md5", md5_of(slide), "--mirror", url]
        gigapipe("download", f"gdc:{file_id}", tmp_path / "a.svs", *common, "--api", url)
        paths = [request.path for request in archive.requests]
    assert paths == [f"/data/{file_id}", f"/{file_id}/{name_of(1)}"]
    assert md5_of(tmp_path / "a.svs") == md5_of(slide) and archive.sent_twice(file_id) == 0


def test_a_killed_download_goes_on(slide, tmp_path):
    archive = Archive(bytes_per_second=1 << 20)
    file_id = archive.add(slide, name_of(1))
    target = tmp_path / "a.svs"
    with serving(archive) as url:
        command = [Path(sys.executable).with_name("gigapipe"), "download", f"{url}/data/{file_id}", target]
        command += ["--md5", md5_of(slide), "--size", str(slide.stat().st_size)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not (partial := tmp_path / ".a.svs.partial").exists() or partial.stat().st_size < 300_000:
            time.sleep(0.01)
        archive.bytes_per_second = 1 << 14  # for as long as it takes to start another process
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == AGAIN and f"another process (process {process.pid} on" in second.stderr
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists() and 0 < partial.stat().st_size < slide.stat().st_size
        archive.bytes_per_second = None
        subprocess.run(command, check=True)
    assert md5_of(target) == md5_of(slide) and not partial.exists()
    assert archive.requests[-1].range_start >= 300_000
    assert archive.sent_twice(file_id) < 300_000


def test_what_stays_wrong_is_said_in_one_line(slide, tmp_path):
    archive = Archive()
    file_id = archive.add(slide, name_of(1))
    with serving(archive) as url:
        address = f"{url}/data/{file_id}"
        for faults, options, message in (
            (
                [Fault("json")] * 2,
                [],
                'not a slide but \'{"message": "internal server error"}\', 2 times in succession',
            ),
            ([Fault("503")] * 2, [], "the server answers 503, 2 times in succession"),
            ([], ["--md5", "0" * 32], f"its md5 is {md5_of(slide)}, not {'0' * 32}"),
            ([], ["--size", "1000"], "bytes instead of 1000"),
        ):
            archive.faults[file_id] = faults
            done = gigapipe("download", address, tmp_path / "a.svs", "--tries", 2, *options, check=False)
            assert done.returncode == (AGAIN if "in succession" in message else NEVER)
            assert message in done.stdout.splitlines()[-1] and address in done.stdout
            assert "Traceback" not in done.stdout and not list(tmp_path.iterdir())
        with pytest.raises(NotThere, match="404"):
            download([f"{url}/data/{'0' * 8}"], tmp_path / "a.svs")


def test_a_stale_id_names_the_command_that_refreshes_it_and_that_works(slide, tmp_path):
    archive = Archive()
    old = "11111111-0000-4000-8000-000000000000"
    new = archive.add(slide, name_of(1), former_ids=[old])
    archive.add(None, name_of(2), "22222222-0000-4000-8000-000000000000", md5="2" * 32, size=2)
    sheet = tmp_path / "slides.tsv"
    columns = "slide\tpatient\tsite\tlabel\tsource\tfilename\tmd5\tsize\tremark\n"
    rows = [
        f"a\tp\ts\tx\tgdc:{old}\t{name_of(1)}\t{'0' * 32}\t5\tmine\n",
        f"b\tq\ts\ty\tgdc:22222222-0000-4000-8000-000000000000\t{name_of(2)}\t{'2' * 32}\t2\t\n",
        f"c\tr\ts\ty\tgdc:33333333-0000-4000-8000-000000000000\t{name_of(3)}\t{'3' * 32}\t3\t\n",
        "d\tt\ts\ty\t/local/d.svs\t\t\t\t\n",
    ]
    sheet.write_text("# a comment\n" + columns + "".join(rows))
    with serving(archive) as url:
        stale = ["download", f"gdc:{old}", tmp_path / "a.svs", "--filename", name_of(1), "--api", url]
        done = gigapipe(*stale, check=False)
        assert done.returncode == 1 and "gigapipe gdc refresh" in done.stdout
        assert name_of(1) in done.stdout and f"was re-released as {new}" in done.stdout
        done = gigapipe("gdc", "refresh", sheet, "--api", url)
    assert "1 of 4 slides were re-released" in done.stdout and "slide c: the archive no longer has" in done.stdout
    lines = sheet.read_text().splitlines(keepends=True)
    assert lines[0].startswith("# gigapipe") and lines[1] == columns and lines[3:] == rows[1:]
    assert lines[2] == f"a\tp\ts\tx\tgdc:{new}\t{name_of(1)}\t{md5_of(slide)}\t{slide.stat().st_size}\tmine\n"


class Elsewhere(BaseHTTPRequestHandler):
    """Another host, which notes whether it was given the token."""

    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        body = self.server.slide.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Redirecting(Elsewhere):
    def do_GET(self):
        self.server.seen.append(dict(self.headers))
        self.send_response(302)
        self.send_header("Location", self.server.target)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_the_token_goes_to_the_archive_alone_and_is_written_nowhere(slide, tmp_path):
    secret = "SECRET-0f9a8b7c6d"
    (token := tmp_path / "token.txt").write_text(secret + "\n")
    archive = Archive(token=secret)
    file_id = archive.add(slide, name_of(1), access="controlled")
    options = ["--filename", name_of(1), "--token", token]
    outputs = []
    with serving(archive) as url:
        fetch = ["download", f"gdc:{file_id}", tmp_path / "out/a.svs", *options, "--api", url]
        outputs.append(gigapipe(*fetch, check=False).stdout)
        assert "is not encrypted" in outputs[-1] and "plain_http: [127.0.0.1]" in outputs[-1]
        options += ["--plain-http", "127.0.0.1"]
        fetch = ["download", f"gdc:{file_id}", tmp_path / "out/a.svs", *options, "--api", url]
        outputs.append(gigapipe(*fetch, check=False).stdout)
        assert f"chmod 600 {token}" in outputs[-1] and not archive.requests
        token.chmod(0o600)
        archive.faults[file_id] = [Fault("cut")]
        outputs.append(gigapipe(*fetch).stdout)
        assert all(request.token for request in archive.requests)
        outputs.append(gigapipe("download", f"{url}/data/{file_id}", tmp_path / "out/b.svs", check=False).stdout)
        assert "403" in outputs[-1]
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Redirecting, Elsewhere)]
    for server in servers:
        server.seen, server.slide = [], slide
        server.target = f"http://localhost:{servers[1].server_port}/a.svs"
        threading.Thread(target=server.serve_forever, daemon=True).start()
    api, mirror = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    outputs.append(gigapipe("download", f"gdc:{file_id}", tmp_path / "out/c.svs", *options, "--api", api).stdout)
    # A mirror, and a source that is no archive's, although they are on the same host.
    nobody = ["--api", "http://127.0.0.1:9", "--mirror", mirror]
    outputs.append(gigapipe("download", f"gdc:{file_id}", tmp_path / "out/d.svs", *options, *nobody).stdout)
    outputs.append(gigapipe("download", f"{mirror}/a.svs", tmp_path / "out/e.svs", *options, "--api", api).stdout)
    for server in servers:
        server.shutdown()
        server.server_close()
    assert servers[0].seen[0]["X-Auth-Token"] == secret
    assert len(servers[1].seen) == 3 and not any("X-Auth-Token" in headers for headers in servers[1].seen)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 4 and not any(secret.encode() in data for data in written)
    assert not any(secret in output for output in outputs)


def test_the_file_s_place_is_the_caller_s_word_alone(slide, tmp_path):
    archive = Archive()
    inside = tmp_path / "slides"
    names = ["../../x.svs", "/abs/x.svs", "n\\0ul.svs", "a" * 300 + ".svs", "führer\u202e.svs", "a/../../b.svs"]
    with serving(archive) as url:
        for i, name in enumerate(names):
            file_id = archive.add(slide, name_of(i), disposition=name)
            download([f"{url}/data/{file_id}"], inside / f"{i}.svs", md5_of(slide))
    here = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert here == [f"slides/{i}.svs" for i in range(len(names))]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(tmp_path, caplog):
    caplog.set_level(logging.INFO, "gigapipe")
    free = os.statvfs(tmp_path)
    too_much = free.f_frsize * free.f_blocks
    sizes = {tmp_path / "slides" / f"{i}.svs": too_much // 4 for i in range(5)} | {tmp_path / "slides/x.svs": 0}
    with pytest.raises(
        InputError, match="6 slides to download, .* and 1 of unknown size; .* not enough: .*keep_slides"
    ):
        check_disk_space(sizes, keep=True)
    with pytest.raises(InputError, match="not enough"):
        check_disk_space({tmp_path / "slides/a.svs": too_much}, keep=False)
    with pytest.raises(InputError, match="not enough"):
        check_disk_space(sizes, keep=False, together=5)
    announce({tmp_path / "slides/a.svs": Wanted(["http://127.0.0.1:9/a"], 5_000_000, True)}, keep=True)
    assert "1 slide to download, 5 MB; free space on the disk of" in caplog.text


def test_a_first_look_tells_the_rate_and_what_it_brought_is_used(slide, tmp_path, caplog):
    caplog.set_level(logging.INFO, "gigapipe")
    big = tmp_path / "big.svs"
    big.write_bytes(slide.read_bytes() + bytes((1 << 26) + 1))
    archive = Archive()
    file_id = archive.add(big, name_of(1))
    target = tmp_path / "slides/a.svs"
    with serving(archive) as url:
        address = f"{url}/data/{file_id}"
        announce({target: Wanted([address], big.stat().st_size, True)}, keep=True)
        download([address], target, md5_of(big), big.stat().st_size)
    assert re.search(r"The first data arrived at \S+ [MG]B per second: \S+ hours", caplog.text)
    assert archive.sent_twice(file_id) == 0 and len(archive.requests) == 2
