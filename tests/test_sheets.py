"""Sample sheets as people save them: read where what is meant is plain, and else refused in a line."""

import io
import logging
import re
import shlex
import zipfile

import openpyxl
import pandas as pd
import pytest
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.evaluation.folds import given_folds, make_folds
from gigapipe.slides.phantom import cohort, sheet_row
from gigapipe.slides.sheet import COLUMNS, read_sheet, write_sheet

SHEET = pd.DataFrame(map(sheet_row, cohort(patients=6))).assign(site="Zürich, Spital")
CSV = SHEET.to_csv(index=False)
TSV = SHEET.to_csv(index=False, sep="\t")


def workbook(rows: list[list]) -> bytes:
    """An .xlsx of three sheets, of which the first is hidden and the second has the rows."""
    book = openpyxl.Workbook()
    book.active.sheet_state = "hidden"
    sheet = book.create_sheet("slides")
    book.create_sheet("notes")
    for row in rows:
        sheet.append(row)
    book.save(data := io.BytesIO())
    return data.getvalue()


def document() -> bytes:
    """A zip file of another program."""
    with zipfile.ZipFile(data := io.BytesIO(), "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    return data.getvalue()


EXCEL = workbook([list(SHEET), *SHEET.to_numpy().tolist()])
AS_SAVED = {
    "crlf.csv": (CSV.replace("\n", "\r\n").encode(), ""),
    "mac.csv": (CSV.replace("\n", "\r").encode(), ""),
    "mark.csv": (CSV.encode("utf-8-sig"), ""),
    "latin.csv": (CSV.encode("cp1252"), "is not UTF-8; as Windows-1252 it reads '\"Zürich'"),
    "utf16.tsv": (TSV.encode("utf-16"), ""),
    "utf16.csv": (CSV.encode("utf-16-le"), "read as UTF-16-LE"),
    "semicolons.csv": (SHEET.to_csv(index=False, sep=";").encode(), "separated by semicolons"),
    "bars.txt": (SHEET.to_csv(index=False, sep="|").encode(), "separated by bars"),
    "tabs.csv": (TSV.encode(), "separated by tabs"),
    "commas.tsv": (CSV.encode(), "separated by commas"),
    "capitals.csv": (CSV.replace("slide,patient", " Slide , PATIENT\u00a0", 1).encode(), ""),
    "padded.csv": (re.sub(r"^(PH\S+?),", r" \1  ,", CSV, flags=re.MULTILINE).encode(), ""),
    "empty-rows.csv": ((CSV + ",,,,\n\n  ,,,,\n").encode(), ""),
    "more-columns.csv": (CSV.replace("\n", ",,\n").encode(), ""),
    "comments.csv": (f'"# written by, hand",,,,\nsep=,\n\n{CSV}'.encode(), ""),
    "book.xlsx": (EXCEL, "reading 'slides', the first of its sheets, and not 'notes'"),
    "book.csv": (EXCEL, "of its sheets"),
}


@pytest.mark.parametrize("name", AS_SAVED)
def test_a_sheet_is_read_as_a_spreadsheet_saves_it(name, tmp_path, caplog):
    caplog.set_level(logging.INFO, "gigapipe")
    data, said = AS_SAVED[name]
    (tmp_path / name).write_bytes(data)
    pd.testing.assert_frame_equal(read_sheet(tmp_path / name), SHEET[COLUMNS])
    assert [said in message for message in caplog.messages] == [True] * bool(said)


NOT_READ = {
    "other.csv": (b"Name;Case\na;b\n", "no column slide, .*'Name', 'Case', separated by semicolons"),
    "title.csv": (b"My slides;;;\nslide;patient;label;source\na;p;x;a.svs\n", "no column slide, .*columns 'My slides'"),
    "spaces.txt": (b"slide patient label\na b c\n", "found are the columns 'slide patient label', separated by tabs"),
    "comma-in-cell.csv": (b"slide,patient,label,source\na,p,x,a.svs\nb,q,small, cell,b.svs\n", "row 2 has 5 cells"),
    "quote.csv": (b'slide,patient\n"a,p\nb,q\n', "line 3 .*correct its quotes"),
    "twice.csv": (b"slide,Label,label\na,x,y\n", "two columns label"),
    "torn.xlsx": (EXCEL[:500], "as a workbook .it is truncated or damaged.; save it as CSV"),
    "words.docx": (document(), "not an Excel workbook"),
    "old.xls": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500), "old version of Excel.*save it as CSV"),
    "noise.csv": (bytes(range(256)) * 9, "has no column slide|save it as CSV|correct its quotes"),
    "empty.csv": (b"", "has no column slide.*columns none"),
    "nowhere.csv": (None, "cannot be read .No such file"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_plain_is_said_with_what_was_seen(name, tmp_path):
    data, message = NOT_READ[name]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        read_sheet(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_sites_homes_and_numbers_as_people_write_them(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "gigapipe")
    monkeypatch.setenv("HOME", "/home/me")
    lines = ["slide;patient;site;label;source;mpp", "a;p;H;x;~/a.svs;0,25", "b;p;;x;b.svs;", "c;q;;y;c.svs;0.5"]
    (tmp_path / "s.csv").write_text("\n".join(lines))
    sheet = read_sheet(tmp_path / "s.csv")
    assert list(sheet["site"]) == ["H", "H", "unknown"] and list(sheet["mpp"]) == ["0.25", "", "0.5"]
    assert sheet["source"][0] == "/home/me/a.svs"
    assert "2 slides without a site (''); 1 get the site of their patient's other slides; for 1 it is" in caplog.text
    (tmp_path / "s.csv").write_text("\n".join(lines).replace("q;;", "q;n/a;"))
    assert list(read_sheet(tmp_path / "s.csv")["site"]) == ["H", "H", "unknown"]
    (tmp_path / "s.csv").write_text("\n".join(lines).replace("c;q", "c;NA"))
    with pytest.raises(InputError, match="slide c has the patient NA"):
        read_sheet(tmp_path / "s.csv")


def rows(*slides: str, columns: str = "slide patient label source md5") -> str:
    return "\n".join("\t".join(row.split()) for row in (columns, *slides)) + "\n"


def test_one_file_under_two_names_is_refused(tmp_path):
    path = tmp_path / "slides.tsv"
    (tmp_path / "a.svs").touch()
    (tmp_path / "link.svs").symlink_to(tmp_path / "a.svs")
    for first, second, message in (
        (
            "a.svs " + "d" * 32,
            "b.svs " + "D" * 32,
            "slides s1 and s2 are the same file: both have the md5 d+, under the patients p1",
        ),
        (f"{tmp_path}/a.svs", f"{tmp_path}/x/../a.svs", "s1 and s2 are the same file: both have the path"),
        (f"{tmp_path}/a.svs", f"{tmp_path}/link.svs", "s1 and s2 are the same file: both have the path .*/a.svs"),
    ):
        path.write_text(rows(f"s1 p1 x {first}", f"s2 p2 y {second}"))
        with pytest.raises(InputError, match=message):
            read_sheet(path)
    path.write_text(rows("s1 p1 x a.svs", f"s2 p2 y b.svs {'0' * 32}", f"s3 p3 y c.svs {'0' * 32}"))
    assert len(read_sheet(path)) == 3  # what has no checksum has none in common


@pytest.mark.parametrize(
    "labels, message",
    [
        (["Benign", "benign", "other"], r"'Benign' \(1 slide\) and 'benign' \(1 slide\) differ only in upper case"),
        (["small cell", "small  cell", "other"], "differ only in upper case or spaces"),
        (["NA", "x", "y"], "label NA of 1 slide looks like a missing value"),
        (["n/a", "none", "y"], "label n/a, none of 2 slides"),
        (["#N/A", "x", "y"], "looks like a missing value"),
        (["not reported", "x", "y"], "looks like a missing value"),
    ],
)
def test_doubtful_labels_are_confirmed_or_refused(labels, message, tmp_path):
    path = tmp_path / "slides.csv"
    table = pd.DataFrame({"slide": list("abc"), "patient": list("pqr"), "label": labels, "source": list("xyz")})
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=message) as error:
        read_sheet(path)
    options = re.search(r"or (--confirmed-label .*)$", str(error.value))[1]
    assert "confirmed_labels: [" in str(error.value) and "\n" not in str(error.value)
    confirmed = shlex.split(options)[1::2]
    assert set(confirmed) < set(labels) and list(read_sheet(path, confirmed=confirmed)["label"]) == labels
    read_sheet(path, labelled=False)


def test_patients_that_may_be_one_are_named(tmp_path, caplog):
    (tmp_path / "s.tsv").write_text(rows("a P-1 x a.svs", "b p-1 y b.svs"))
    read_sheet(tmp_path / "s.tsv")
    assert "patients P-1 and p-1 differ only in upper case or spaces, and are treated as 2" in caplog.text


def test_a_sheet_is_written_as_it_will_be_read(tmp_path):
    for name in ("a.tsv", "a.csv"):
        write_sheet(SHEET, tmp_path / name, "two\nlines")
        assert (tmp_path / name).read_text().startswith("# two lines\nslide")
        pd.testing.assert_frame_equal(read_sheet(tmp_path / name), SHEET[COLUMNS])
    twice = pd.concat([SHEET, SHEET.iloc[:1]])
    for sheet, name, message in (
        (twice, "b.tsv", "listed twice"),
        (SHEET.assign(site=" padded"), "b.tsv", "could not be read back unchanged"),
        (SHEET, "b.xlsx", "workbooks cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            write_sheet(sheet, tmp_path / name, "comment")
    assert {path.name for path in tmp_path.iterdir()} == {"a.tsv", "a.csv"}


def test_given_folds_are_read_alike_and_contradict_nothing(tmp_path):
    made = make_folds(SHEET, 3, seed=0, by="patient")
    path = tmp_path / "folds.csv"
    path.write_bytes(made[["slide", "fold"]].rename(columns=str.upper).to_csv(index=False, sep=";").encode("utf-16"))
    assert list(given_folds(SHEET, path)["fold"]) == list(made["fold"])
    twice = pd.concat([made, made.iloc[:1].assign(fold=(made["fold"].iloc[0] + 1) % 3)])
    for table, message in (
        (twice, r"slide \S+ is listed with 2 folds; give one"),
        (made.assign(fold=[*made["fold"].astype(str)[:-1], "two"]), "whole numbers"),
        (made.drop(columns="fold"), "needs columns fold, and slide or patient; found are the columns"),
    ):
        table.to_csv(path, index=False)
        with pytest.raises(InputError, match=message):
            given_folds(SHEET, path)


def test_folds_say_which_columns_were_seen(tmp_path):
    (tmp_path / "s.csv").write_text("Name,Case\na,b\n")
    done = gigapipe("folds", tmp_path / "s.csv", tmp_path / "folds", check=False)
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1 and "'Name', 'Case'" in done.stdout
