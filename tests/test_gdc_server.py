"""The archive that the tests fetch from behaves as the Genomic Data Commons does, and fails as it is told to."""

import hashlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gdc_server
import pytest
import requests
from gdc_server import Archive, Fault, serving

BODY = random.Random(0).randbytes(300_001)
NAME = "TCGA-38-4631-01Z-00-DX1.5E0C873A.svs"
FORMER = "11111111-2222-4333-8444-555555555555"
SLIDE_ID = "cases.samples.portions.slides.submitter_id"


@pytest.fixture
def body(tmp_path) -> Path:
    (tmp_path / NAME).write_bytes(BODY)
    return tmp_path / NAME


@pytest.fixture
def archive() -> Archive:
    return Archive(token="a secret")


@pytest.fixture
def url(archive):
    with serving(archive) as url:
        yield url


@pytest.fixture
def slide(archive, body) -> str:
    return archive.add(body, NAME, former_ids=[FORMER])


@pytest.fixture
def cohort(archive, shared) -> list[dict]:
    """The slides of two genuine manifests."""
    rows = []
    for path in sorted((shared / "data/gdc/manifests").glob("*.txt")):
        names, *lines = [line.split("\t") for line in path.read_text().splitlines()]
        for row in (dict(zip(names, line, strict=True)) for line in lines):
            project = "TCGA-LUAD" if "luad" in path.name else "TCGA-LUSC"
            size = int(row["size"])
            archive.add(None, row["filename"], row["id"], row["md5"], project, state=row["state"], size=size)
            rows.append(row | {"project": project})
    return rows


def genuine(shared: Path, number: int) -> dict:
    [path] = (shared / "data/gdc/replies").glob(f"{number:02}_*.json")
    return json.loads(path.read_text())


def among(field: str, *values, op: str = "in") -> dict:
    return {"op": op, "content": {"field": field, "value": list(values)}}


def search(url: str, filters=None, **options) -> dict:
    reply = requests.post(f"{url}/files", json={"filters": filters, "size": 2000, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def kinds(value):
    """A reply's structure: its names and the types of their values."""
    if isinstance(value, dict):
        return {name: kinds(part) for name, part in value.items()}
    return [kinds(value[0])] if isinstance(value, list) else type(value)


def test_replies_have_the_shape_of_genuine_ones(archive, url, slide, shared):
    # 3: a page of files; 4: one file; 5: versions; 15: fields; 16: expand.
    page = requests.get(f"{url}/files", params={"from": 0, "size": 2, "sort": "file_size:asc"}).json()
    assert kinds(page) == kinds(genuine(shared, 3))
    one = requests.get(f"{url}/v0/files/{slide}").json()
    assert kinds(one) == kinds(genuine(shared, 4))
    assert kinds(requests.get(f"{url}/files/versions/{slide}").json()) == kinds(genuine(shared, 5))

    fields = "cases.submitter_id,file_id,file_name,file_size"
    [hit] = requests.get(f"{url}/files", params={"fields": fields}).json()["data"]["hits"]
    assert hit.pop("id") == slide and kinds(hit) == kinds(genuine(shared, 15)["data"]["hits"][0])
    assert hit["cases"] == [{"submitter_id": "TCGA-38-4631"}] and hit["file_size"] == len(BODY)

    expanded = requests.get(f"{url}/files/{slide}", params={"expand": "cases.samples"}).json()["data"]
    ours, theirs = expanded.pop("cases"), genuine(shared, 16)["data"]["cases"]
    assert expanded == one["data"]
    assert set(ours[0]) == set(theirs[0]) and set(ours[0]["samples"][0]) <= set(theirs[0]["samples"][0])
    assert kinds(requests.get(f"{url}/status").json()) == kinds(genuine(shared, 37))


def test_a_slide_knows_its_patient_and_its_hospital(archive, url, slide):
    names = ["project.project_id", "tissue_source_site.name", "tissue_source_site.code", "samples.sample_type"]
    fields = ",".join([SLIDE_ID, "no_such_field", *(f"cases.{name}" for name in names)])
    reply = requests.get(f"{url}/files", params={"fields": fields}).json()
    assert reply["warnings"] == {"fields": "unrecognized values: [no_such_field]"}
    portions = [{"slides": [{"submitter_id": "TCGA-38-4631-01Z-00-DX1"}]}]
    case = {
        "project": {"project_id": "TCGA-LUAD"},
        "tissue_source_site": {"name": "institution name", "code": "38"},
        "samples": [{"sample_type": "Primary Tumor", "portions": portions}],
    }
    assert reply["data"]["hits"] == [{"id": slide, "cases": [case]}]


def test_a_cohort_is_found_page_by_page(url, cohort):
    lung = among("cases.project.project_id", "TCGA-LUAD")
    seen, page = [], {"total": None}
    while len(seen) != page["total"]:
        data = search(url, lung, size=100, sort="file_name:asc", fields="file_name", **{"from": len(seen)})
        page = data["pagination"]
        seen += [hit["file_name"] for hit in data["hits"]]
        assert page["count"] == len(data["hits"]) > 0
    assert seen == sorted(row["filename"] for row in cohort if row["project"] == "TCGA-LUAD")
    assert page | {"from": 500, "page": 6, "pages": 6, "count": 41, "total": 541, "size": 100} == page

    by_default = requests.get(f"{url}/files", params={"from": 101}).json()["data"]
    assert len(by_default["hits"]) == by_default["pagination"]["size"] == 10
    assert by_default["pagination"]["page"] == 11 and by_default["pagination"]["pages"] == 106
    largest = search(url, size=1, sort="file_size:desc", fields="file_size")["hits"][0]
    assert largest["file_size"] == max(int(row["size"]) for row in cohort)
    assert search(url, size=0)["hits"] == []


def test_filters_may_come_in_any_of_the_ways_of_the_guide(url, cohort, shared):
    ids = sorted(row["id"] for row in cohort[3:800:7])
    filters, options = among("files.file_id", *ids), {"fields": "file_id", "size": 200}
    text = json.dumps(filters)
    replies = [
        requests.post(f"{url}/files", json={"filters": filters, **options}),
        requests.post(f"{url}/files", json={"filters": text, **options, "size": "200"}),
        requests.post(f"{url}/files", data={"filters": text, **options}),
        requests.get(f"{url}/files", params={"filters": text, **options}),
    ]
    for reply in replies:
        assert sorted(hit["file_id"] for hit in reply.json()["data"]["hits"]) == ids
    table = requests.post(f"{url}/files", json={"filters": filters, "format": "TSV", **options}).text
    assert sorted(table.split()) == sorted(["file_id", "id", *ids, *ids])


def test_the_guides_own_payload_is_understood(archive, url, shared):
    payload = genuine(shared, 12)
    for number, file_id in enumerate(payload["filters"]["content"]["value"][1:]):
        archive.add(None, f"TCGA-44-{number:04}-11A-01-TS1.x.svs", file_id, md5="0" * 32, size=1)
    archive.add(None, "another.svs", md5="0" * 32, size=1)
    header, *rows = [line.split("\t") for line in requests.post(f"{url}/files", json=payload).text.splitlines()]
    assert len(rows) == len(payload["filters"]["content"]["value"]) - 1
    row = dict(zip(header, rows[0], strict=True))
    assert row["cases.0.submitter_id"] == "TCGA-44-0000" and row["data_category"] == "Biospecimen"
    assert row["cases.0.samples.0.sample_type"] == "Solid Tissue Normal"


@pytest.mark.parametrize(
    "filters, found",
    [
        (None, "abc"),
        (among("cases.project.project_id", "TCGA-LUSC"), "c"),
        (among("cases.project.project_id", "TCGA-LU*", op="="), "abc"),
        (among("experimental_strategy", "Tissue Slide", "WXS"), "b"),
        (among("experimental_strategy", "Tissue Slide", op="exclude"), "ac"),
        (among("files.access", "open", op="!="), "c"),
        ({"op": "=", "content": {"field": "acl", "value": "open"}}, "ab"),
        (among("file_size", 20, op="<"), "a"),
        (among("file_size", 20, op="<="), "ab"),
        (among("file_size", "20", op=">"), "c"),
        (among("file_size", 20, op=">="), "bc"),
        (among("file_size", 20, "30"), "bc"),
        (among("cases.tissue_source_site.code", "missing", op="is"), "c"),
        (among("cases.tissue_source_site.code", "MISSING", op="not"), "ab"),
        (among("no.such.field", "x"), ""),
        ({"op": "and", "content": [among("access", "open"), among("file_size", 10, op=">")]}, "b"),
        ({"op": "or", "content": [among("access", "controlled"), among("file_size", 10)]}, "ac"),
    ],
)
def test_filters_choose(archive, url, filters, found):
    archive.add(None, "TCGA-05-4244-01Z-00-DX1.svs", "a", md5="0", size=10)
    archive.add(None, "TCGA-05-4244-01A-01-TS1.svs", "b", md5="0", size=20, experimental_strategy="Tissue Slide")
    archive.add(None, "phantom.svs", "c", md5="0", size=30, project="TCGA-LUSC", access="controlled")
    assert [hit["id"] for hit in search(url, filters)["hits"]] == list(found)


@pytest.mark.parametrize(
    "parameters",
    [
        {"filters": "{"},
        {"filters": '["in"]'},
        {"filters": '{"op": "in"}'},
        {"filters": '{"op": "like", "content": {"field": "access", "value": "open"}}'},
        {"filters": '{"op": "in", "content": {"field": "access"}}'},
        {"filters": '{"op": "and", "content": {"field": "access", "value": "open"}}'},
        {"filters": '{"op": "<", "content": {"field": "file_size", "value": "many"}}'},
        {"size": "all"},
        {"from": -1},
    ],
)
def test_what_cannot_be_understood_is_refused_in_json(url, slide, parameters):
    reply = requests.get(f"{url}/files", params=parameters)
    assert reply.status_code == 400 and reply.json()["message"].startswith("Bad Request")
    assert requests.post(f"{url}/files", data="{", headers={"Content-Type": "application/json"}).status_code == 400


def test_of_former_ids_only_versions_knows(archive, url, slide):
    for address in (f"files/{FORMER}", f"data/{FORMER}", f"data/{slide[::-1]}"):
        reply = requests.get(f"{url}/{address}")
        assert reply.status_code == 404 and reply.json()["message"].endswith("not found")
    assert not search(url, among("file_id", FORMER))["hits"]
    old, new = requests.get(f"{url}/files/versions/{FORMER},{slide[::-1]},{slide}").json()
    assert (old["id"], old["version"], old["latest_id"], old["latest_version"]) == (FORMER, "1", slide, "2")
    assert (new["id"], new["version"], new["latest_id"]) == (slide, "2", slide)
    assert "latest_md5" not in old and new["latest_md5"] == new["md5"] == hashlib.md5(BODY).hexdigest()
    assert requests.post(f"{url}/files/versions", json={"ids": [FORMER]}).json() == [old]


@pytest.mark.parametrize(
    "asked, begin, end",
    [
        (None, 0, len(BODY)),
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=300000-", 300_000, len(BODY)),
        ("bytes=100-999999", 100, len(BODY)),
        ("bytes=-7", len(BODY) - 7, len(BODY)),
        ("bytes=-999999", 0, len(BODY)),
        ("bytes=9-3", 0, len(BODY)),
        ("lines=1-2", 0, len(BODY)),
        ("bytes=300001-", None, None),
        ("bytes=-0", None, None),
    ],
)
def test_ranges(archive, url, slide, asked, begin, end):
    partial = end is not None and (begin, end) != (0, len(BODY)) or asked == "bytes=-999999"
    for address in (f"{url}/data/{slide}", f"{url}/{slide}/{NAME}"):
        reply = requests.get(address, headers={"Range": asked})
        if end is None:
            assert reply.status_code == 416 and reply.headers["Content-Range"] == f"bytes */{len(BODY)}"
            continue
        assert reply.content == BODY[begin:end] and int(reply.headers["Content-Length"]) == end - begin
        assert reply.status_code == (206 if partial else 200) and reply.headers["Accept-Ranges"] == "bytes"
        assert reply.headers.get("Content-Range") == (f"bytes {begin}-{end - 1}/{len(BODY)}" if partial else None)
        record = archive.requests[-1]
        assert (record.first, record.sent, record.status) == (begin, end - begin, reply.status_code)
        assert record.range_start == (begin if partial else None)


def test_headers_are_those_of_the_archive(archive, url, slide, body):
    reply = requests.get(f"{url}/data/{slide}")
    md5 = hashlib.md5(BODY).hexdigest()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename={NAME}",
        "Content-MD5": md5,
    }
    assert headers.items() <= dict(reply.headers).items()
    head = requests.head(f"{url}/data/{slide}")
    assert not head.content and head.headers["Content-Length"] == str(len(BODY))
    evil = archive.add(body, "other.svs", disposition="../../evil é.svs")
    sent = requests.get(f"{url}/data/{evil}").headers["Content-Disposition"]
    assert sent.encode("latin-1").decode() == "attachment; filename=../../evil é.svs"
    gone = archive.add(None, "gone.svs", md5=md5, size=1)
    assert requests.get(f"{url}/data/{gone}").status_code == 404


def test_the_bucket_answers_as_s3_does(archive, url, slide, body, tmp_path):
    reply = requests.get(f"{url}/{slide}/{NAME}")
    assert reply.content == BODY and "Content-Disposition" not in reply.headers
    assert reply.headers["ETag"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    for etag, status in ((reply.headers["ETag"], 206), ('"another"', 200)):
        assert requests.get(reply.url, headers={"Range": "bytes=5-", "If-Range": etag}).status_code == status
    closed = archive.add(body, "closed.svs", access="controlled")
    for key in (f"{slide}/other.svs", f"{FORMER}/{NAME}", f"{closed}/closed.svs"):
        absent = requests.get(f"{url}/{key}")
        assert absent.status_code == 404 and absent.headers["Content-Type"] == "application/xml"
        assert "<Code>NoSuchKey</Code>" in absent.text and f"<Key>{key}</Key>" in absent.text
    with open(tmp_path / "large.svs", "wb") as large:
        large.truncate(20 << 20)
    parts = archive.add(tmp_path / "large.svs", "large é.svs")
    assert requests.head(f"{url}/{parts}/large é.svs").headers["ETag"].endswith('-3"')


def test_controlled_files_need_the_token_which_is_not_kept(archive, url, body):
    file_id = archive.add(body, NAME, access="controlled")
    for headers, status, why in (
        ({}, 403, "Please specify"),
        ({"X-Auth-Token": "a guess"}, 403, "access"),
        ({"X-Auth-Token": "a secret"}, 200, ""),
    ):
        reply = requests.get(f"{url}/data/{file_id}", headers=headers)
        assert reply.status_code == status and (status == 200 or why in reply.json()["error"])
    records = archive.requests
    assert [record.token for record in records] == [False, True, True]
    assert "a secret" not in repr(records) and "a guess" not in requests.get(f"{url}/requests").text


def read_raw(url: str, path: str, begin: int | None = None) -> tuple[int, bytes, Exception | None]:
    """Status, what arrived before the end or the failure, and the failure."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request("GET", path, headers={} if begin is None else {"Range": f"bytes={begin}-"})
    reply, arrived = connection.getresponse(), b""
    try:
        while block := reply.read1(1000):
            arrived += block
        failure = http.client.IncompleteRead(arrived) if reply.length else None
    except OSError as error:
        failure = error
    connection.close()
    return reply.status, arrived, failure


@pytest.mark.parametrize("kind, failure", [("cut", http.client.IncompleteRead), ("reset", ConnectionResetError)])
@pytest.mark.parametrize("share", [0, 0.25, 0.9])
def test_connections_break_off_in_the_middle(archive, url, slide, kind, failure, share):
    archive.faults[slide] = [Fault(kind, share=share), None]
    for begin in (1000, 2000):
        status, arrived, error = read_raw(url, f"/data/{slide}", begin)
        expected = int((len(BODY) - begin) * share) if begin == 1000 else len(BODY) - begin
        assert status == 206 and arrived == BODY[begin : begin + expected]
        assert type(error) is failure if begin == 1000 else error is None
    broken, whole = archive.requests
    assert (broken.fault, broken.sent, whole.fault) == (kind, int((len(BODY) - 1000) * share), None)


def test_a_stalled_reply_goes_on_when_its_time_is_over(archive, url, slide):
    archive.faults[slide] = [Fault("stall", seconds=0.5), Fault("stall", seconds=60)]
    begin = time.monotonic()
    assert requests.get(f"{url}/data/{slide}").content == BODY and time.monotonic() - begin > 0.45
    with pytest.raises(requests.ConnectionError, match="timed out"):
        requests.get(f"{url}/data/{slide}", timeout=0.2)
    assert archive.requests[1].sent == len(BODY) // 2


def wait_until(condition) -> None:
    end = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < end, "nothing happened for three seconds"
        time.sleep(0.01)


def test_the_end_of_the_server_ends_all_it_does(archive, slide):
    archive.faults[slide] = [Fault("stall", seconds=60)]
    kept, pool, threads = requests.Session(), ThreadPoolExecutor(), threading.active_count()
    with serving(archive) as url:
        assert kept.get(f"{url}/status").ok
        stalled = pool.submit(read_raw, url, f"/data/{slide}")
        wait_until(lambda: archive.requests[1:] and archive.requests[1].sent == len(BODY) // 2)
        archive.bytes_per_second = 1
        slow = pool.submit(read_raw, url, f"/data/{slide}")
        wait_until(lambda: archive.requests[2:] and archive.requests[2].first == 0)
    assert stalled.result(3)[2] is not None and slow.result(3)[2] is not None
    pool.shutdown()
    wait_until(lambda: threading.active_count() <= threads)
    with pytest.raises(requests.ConnectionError):
        kept.get(f"{url}/status")


@pytest.mark.parametrize("kind", ["429", "500", "503"])
def test_a_server_that_is_busy_may_say_for_how_long(archive, url, slide, kind):
    archive.faults[slide] = [Fault(kind, retry_after=7)]
    archive.faults[f"/{slide}/{NAME}"] = [Fault(kind)]
    busy = requests.get(f"{url}/data/{slide}")
    assert busy.status_code == int(kind) and busy.headers["Retry-After"] == "7" and busy.json()["message"]
    bucket = requests.get(f"{url}/{slide}/{NAME}")
    assert bucket.status_code == int(kind) and "Retry-After" not in bucket.headers and "<Error>" in bucket.text
    assert requests.get(f"{url}/data/{slide}").content == requests.get(f"{url}/{slide}/{NAME}").content == BODY
    assert [record.fault for record in archive.requests] == [kind, kind, None, None]


def test_replies_that_are_not_the_file(archive, url, slide, shared):
    archive.faults[slide] = [Fault("json"), Fault("html"), Fault("wrong"), Fault("short"), Fault("no_range")]
    mistaken = requests.get(f"{url}/data/{slide}")
    assert mistaken.status_code == 200
    assert mistaken.content == (shared / "data/slides/broken/gdc-error-body.svs").read_bytes().strip()
    page = requests.get(f"{url}/data/{slide}")
    assert page.status_code == 200 and page.headers["Content-Type"] == "text/html" and b"<html>" in page.content

    headers = {"Range": "bytes=1000-"}
    wrong = requests.get(f"{url}/data/{slide}", headers=headers)
    differ = [i for i in range(len(BODY) - 1000) if wrong.content[i] != BODY[1000 + i]]
    assert len(wrong.content) == len(BODY) - 1000 and differ == list(range(149_500, 149_516))

    short = requests.get(f"{url}/data/{slide}")
    assert short.status_code == 200 and short.content == BODY[: len(BODY) // 2]
    whole = requests.get(f"{url}/data/{slide}", headers=headers)
    assert whole.status_code == 200 and whole.content == BODY and "Content-Range" not in whole.headers

    records = archive.requests
    assert [record.fault for record in records] == ["json", "html", "wrong", "short", "no_range"]
    assert [record.first for record in records] == [None, None, 1000, 0, 0]
    assert archive.sent_twice(slide) == 0
    assert archive.forced(slide) == len(BODY) - 1000 + 1000
    with pytest.raises(ValueError, match="typo"):
        Fault("typo")


def test_what_is_sent_twice_is_counted(archive, url, slide, body):
    other = archive.add(body, "other.svs")
    for asked in ("0-99", "100-199", "50-149", "1000-1999", "1500-", "0-9", "20-29"):
        requests.get(f"{url}/data/{slide}", headers={"Range": f"bytes={asked}", "User-Agent": "me"})
    requests.get(f"{url}/data/{other}")
    requests.head(f"{url}/data/{slide}")
    assert requests.get(f"{url}/{slide}/{NAME}", headers={"Range": "bytes=190-209"}).ok
    assert archive.sent_twice(slide) == 100 + 500 + 10 + 10 + 10 and archive.sent_twice(other) == 0
    assert archive.requests[2].user_agent == "me" and archive.requests[2].range_start == 50


def test_many_are_served_at_once_at_one_rate(archive, url, slide):
    archive.bytes_per_second = 1_000_000
    begin = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        bodies = list(pool.map(lambda _: requests.get(f"{url}/data/{slide}").content, range(4)))
    assert bodies == [BODY] * 4 and 1 < time.monotonic() - begin < 2.5
    assert len(archive.requests) == 4 and archive.sent_twice(slide) == 3 * len(BODY)


def test_one_connection_serves_many_requests(archive, url, slide):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.connect()
    socket = connection.sock
    archive.faults[slide] = [Fault("503"), None]
    for path in (f"/data/{slide}", "/nowhere", f"/data/{slide}", f"/{slide}/x"):
        connection.request("POST" if path == "/nowhere" else "GET", path, body=b"x" * 10)
        connection.getresponse().read()
        assert connection.sock is socket
    assert [record.status for record in archive.requests] == [503, 404, 200, 404]
    connection.close()


def test_as_a_program_it_serves_a_folder(body):
    command = [sys.executable, gdc_server.__file__, body.parent, "--bytes-per-second", "10000000"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = program.stdout.readline().strip()
        [hit] = search(url)["hits"]
        assert hit["md5sum"] == hashlib.md5(BODY).hexdigest()
        assert requests.get(f"{url}/data/{hit['id']}", headers={"Range": "bytes=1-"}).content == BODY[1:]
        records = [gdc_server.Record(**record) for record in requests.get(f"{url}/requests").json()]
        assert [record.sent for record in records][1:] == [len(BODY) - 1]
        assert gdc_server.sent_twice(records, hit["id"]) == 0
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
