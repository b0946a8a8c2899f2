"""Answers of an archive that are not as they should be: what is wrong is named, and nothing is made up."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from launching import gigapipe

from gigapipe.cli.messages import log_to_stderr
from gigapipe.errors import InputError
from gigapipe.gdc import client
from gigapipe.gdc.answers import File, SlideFile, fields_of
from gigapipe.gdc.client import Client
from gigapipe.gdc.cohort import query


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.server.replies.pop(0)
        self.server.count += 1
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture
def archive(monkeypatch, caplog):
    """A server on loopback that gives the `replies` that it is told, (status, body), one after another."""
    log_to_stderr()  # or a verb would, and the level be put back behind it
    caplog.set_level(logging.INFO, "gigapipe")
    monkeypatch.setattr(client, "WAITS", (0, 0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.count = [], 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def name_of(number: int) -> str:
    return f"TCGA-05-{number:04d}-01Z-00-DX1.{number:08x}-0000-4000-8000-000000000000.svs"


def hit(number: int) -> dict:
    case = {
        "submitter_id": f"TCGA-05-{number:04d}",
        "project": {"project_id": "TCGA-LUAD"},
        "tissue_source_site": {"name": "Hospital"},
        "diagnoses": [{"primary_diagnosis": "Adenocarcinoma, NOS"}],
    }
    file = {"id": f"{number:08x}-0000", "file_name": name_of(number), "md5sum": f"{number:032x}", "file_size": 1000}
    return file | {"cases": [case]}


def page(hits: list, total: int | None = None) -> tuple[int, dict]:
    return 200, {"data": {"hits": hits, "pagination": {"total": len(hits) if total is None else total}}, "warnings": {}}


def asked(url: str, label: str = "project"):
    return query(Client(url), ["TCGA-LUAD"], "Diagnostic Slide", label)


def test_the_archive_is_asked_for_what_is_read():
    assert fields_of(File) == ["file_name", "md5sum", "file_size"]
    assert set(fields_of(SlideFile)) >= {"md5sum", "cases.project.project_id", "cases.tissue_source_site.name"}
    assert "id" not in fields_of(SlideFile)  # which comes unasked


SPOILED = {
    "no md5sum": (lambda h: h.pop("md5sum"), "has no md5sum"),
    "md5sum null": (lambda h: h.update(md5sum=None), "its md5sum is null"),
    "md5sum short": (lambda h: h.update(md5sum="abc"), 'its md5sum is "abc"'),
    "no size": (lambda h: h.pop("file_size"), "has no file_size"),
    "size below zero": (lambda h: h.update(file_size=-3), "its file_size is -3"),
    "no id": (lambda h: h.pop("id"), "has no id"),
    "cases null": (lambda h: h.update(cases=None), "its cases is null"),
    "no cases": (lambda h: h.pop("cases"), "has no cases"),
    "cases empty": (lambda h: h.update(cases=[]), "its cases is []"),
    "no project": (lambda h: h["cases"][0].pop("project"), "has no cases.0.project"),
    "project null": (lambda h: h["cases"][0].update(project=None), "its cases.0.project is null"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_one_file_that_is_not_as_it_should_be_is_named_and_left_out(archive, caplog, kind):
    spoil, words = SPOILED[kind]
    hits = [hit(i) for i in range(3)]
    spoil(hits[1])
    archive.replies = [page(hits)]
    sheet = asked(archive.url)
    assert list(sheet["slide"]) == ["TCGA-05-0000-01Z-00-DX1", "TCGA-05-0002-01Z-00-DX1"]
    assert f"excluded: {name_of(1)}: {words}, according to the archive" in caplog.text


@pytest.mark.parametrize("what", [None, "a text", 7, []])
def test_what_is_no_file_at_all_is_counted(archive, caplog, what):
    archive.replies = [page([hit(0), what])]
    assert len(asked(archive.url)) == 1
    assert "excluded: file 2 of 2: has the wrong format" in caplog.text


def test_if_no_file_is_whole_that_is_the_error(archive):
    archive.replies = [page([hit(i) | {"md5sum": None} for i in range(2)])]
    with pytest.raises(InputError, match=f"none of 2 files has all required fields; the first: {name_of(0)}: its md5"):
        asked(archive.url)


@pytest.mark.parametrize("way", ["null", "missing", "name null"])
def test_a_site_and_diagnoses_may_be_unknown(archive, way):
    hits = [hit(0), hit(1)]
    case = hits[1]["cases"][0]
    for key, inner in (("tissue_source_site", {"name": None}), ("diagnoses", [{"primary_diagnosis": None}])):
        case.pop(key)
        if way != "missing":
            case[key] = None if way == "null" else inner
    archive.replies = [page(hits)]
    assert list(asked(archive.url)["site"]) == ["Hospital", "05"]


MESSAGES = {
    "a message": ((200, {"message": "internal server error"}), "has no data; it says 'internal server error'"),
    "an error": ((200, {"error": {"code": 7}}), "has no data; it says"),
    "data null": ((200, {"data": None, "warnings": {}}), "its data is null; it says"),
    "hits null": ((200, {"data": {"hits": None, "pagination": {"total": 1}}}), "its data.hits is null"),
    "no pagination": ((200, {"data": {"hits": []}}), "has no data.pagination"),
    "total null": ((200, {"data": {"hits": [], "pagination": {"total": None}}}), "its data.pagination.total is null"),
    "null": ((200, "null"), "has the wrong format; it says 'null'"),
    "a list": ((200, []), "has the wrong format; it says '\\[\\]'"),
    "a page": ((200, "<html>Please log in</html>"), "it says '<html>Please log in</html>'"),
    "nothing": ((200, ""), "it says ''"),
    "torn": ((200, '{"data": {"hits": ['), 'it says \'{"data": {"hits": \\[\''),
    "400": ((400, {"message": "Bad Request: no such filter"}), "answers 400, 'Bad Request: no such filter'"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_an_answer_of_another_kind_is_an_error_in_the_archive_s_words(archive, kind):
    reply, words = MESSAGES[kind]
    archive.replies = [reply]
    with pytest.raises(InputError, match=words) as refused:
        asked(archive.url)
    assert archive.url in str(refused.value) and "\n" not in str(refused.value)


def test_what_the_archive_warns_of_is_passed_on(archive, caplog):
    status, body = page([hit(0)])
    archive.replies = [(status, body | {"warnings": {"fields": "unrecognized values: [md5sum]"}})]
    asked(archive.url)
    assert "warns: " in caplog.text and "unrecognized values: [md5sum]" in caplog.text


@pytest.mark.parametrize("status", [429, 500, 503, 507, 520, 599])
def test_what_may_pass_is_asked_again(archive, caplog, status):
    archive.replies = [(status, {"message": "later"}), page([hit(0)])]
    assert len(asked(archive.url)) == 1
    assert f"answers {status}, 'later'; next attempt in" in caplog.text


def test_what_does_not_pass_is_an_error_in_the_archive_s_words(archive):
    archive.replies = [(503, {"message": "we are being repaired"})] * 3
    with pytest.raises(InputError, match="answers 503, 'we are being repaired', 3 times in succession"):
        asked(archive.url)
    archive.server_close()
    archive.shutdown()
    with pytest.raises(InputError, match="the connection failed .*, 3 times in succession"):
        asked(archive.url)


def test_pages_that_are_missing_or_come_twice_are_errors(archive):
    archive.replies = [page([hit(0), hit(1)], total=4), page([], total=4)]
    with pytest.raises(InputError, match="announced 4 files but listed 2"):
        asked(archive.url)
    archive.replies = [page([hit(0), hit(1)], total=4), page([hit(1), hit(2)], total=4)]
    with pytest.raises(InputError, match=f"lists {name_of(1)} twice"):
        asked(archive.url)


def test_a_sheet_is_refreshed_by_what_is_whole(archive, tmp_path):
    sheet = tmp_path / "slides.tsv"
    rows = [f"s{i}\tp{i}\tx\ty{i}\tgdc:old\t{name_of(i)}\t{'0' * 32}\t5" for i in range(2)]
    sheet.write_text("slide\tpatient\tsite\tlabel\tsource\tfilename\tmd5\tsize\n" + "\n".join(rows) + "\n")
    archive.replies = [page([hit(0) | {"cases": None}, hit(1) | {"file_size": None}])]
    done = gigapipe("gdc", "refresh", sheet, "--api", archive.url)
    assert "its file_size is null" in done.stdout and "1 of 2 slides were re-released" in done.stdout
    assert sheet.read_text().splitlines()[1:] == [
        "slide\tpatient\tsite\tlabel\tsource\tfilename\tmd5\tsize",
        f"s0\tp0\tx\ty0\tgdc:{0:08x}-0000\t{name_of(0)}\t{0:032x}\t1000",
        rows[1],
    ]


@pytest.mark.parametrize("reply", [(200, None), (200, [{"latest_id": "x"}]), (200, {"message": "no"})])
def test_of_a_file_s_versions_too(archive, reply):
    archive.replies = [reply]
    with pytest.raises(InputError, match="files/versions/abc: its answer"):
        Client(archive.url).why_absent("gdc:abc", "")
    archive.replies = [(200, [{"id": "abc", "latest_id": None}]), page([])]
    assert "no longer has a file abc" in Client(archive.url).why_absent("gdc:abc", "a.svs")
