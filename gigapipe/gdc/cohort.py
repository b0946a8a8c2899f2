"""Sample sheets of cohorts: from a query, or from a manifest or a sample sheet of the GDC's portal.

Each is a table with `COLUMNS`, all text, ordered by slide; its `attrs["notes"]` say what was left out, and how many.
"""

import logging
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from gigapipe.errors import InputError
from gigapipe.gdc.answers import Case, File, SlideFile
from gigapipe.gdc.barcodes import (
    DIAGNOSTIC,
    FROZEN,
    KINDS,
    NORMAL,
    OTHER,
    STRATEGIES,
    TUMOUR,
    UNKNOWN,
    Barcode,
    parse_barcode,
    sample_type_of,
    tissue_of,
)
from gigapipe.gdc.client import Client
from gigapipe.gdc.selection import Note, Row, chosen, counted, each_once, named
from gigapipe.slides.sheet import NAME
from gigapipe.slides.tables import read_table

logger = logging.getLogger(__name__)

COLUMNS = ["slide", "patient", "site", "label", "source", "filename", "md5", "size", "sample_type", "kind"]
PORTAL = ["File ID", "File Name", "Project ID", "Case ID", "Sample Type", "Tissue Type", "Tumor Descriptor"]


def among(field: str, *values: str) -> dict:
    """The API's filter for a field that has one of the values."""
    return {"op": "in", "content": {"field": field, "value": list(values)}}


def query(
    client: Client,
    projects: list[str],
    strategy: str = "auto",
    label: str = "project",
    classes: dict[str, str] | None = None,
    samples: str = "auto",
) -> pd.DataFrame:
    """The open SVS slides of `projects`, as far as `strategy` and `samples`, options of the config, choose them.

    `label` is `project`, `sample_type`, or `primary_diagnosis`, of the primary disease if the archive knows which; with
    `classes` (names by values) only slides of one of the values stay, under its name. A site is the institution's name.
    Patient and tissue are what the archive says, or the file's name. Files of which nothing says whose they are, are
    named in a warning, and left out; InputError if none remains.
    """
    asked = [
        among("cases.project.project_id", *projects),
        among("data_format", "SVS"),
        among("access", "open"),
    ]
    rows, several, none = [], list[str](), list[str]()
    for file in client.files({"op": "and", "content": asked}, SlideFile):
        row = row_of_hit(file)
        if row and label == "project":
            row["label"] = file.cases[0].project.project_id
        if row and label == "primary_diagnosis":
            found = diagnoses_of(file.cases[0])
            if not found:
                none.append(row["slide"])
                continue
            if len(found) > 1:
                several.append(f"{row['slide']} ({' and '.join(found)})")
                continue
            row["label"] = found[0]
        if row:
            rows.append(row)
    notes = []
    if several:
        notes.append(f"excluded {counted(len(several), 'slide')} of patients with several diagnoses: {named(several)}")
    if none:
        notes.append(f"excluded {counted(len(none), 'slide')} of patients without a diagnosis: {named(none)}")
    if classes:
        others = Counter(row["label"] for row in rows if row["label"] not in classes)
        if others:
            what = named(f"{label} ({number})" for label, number in others.most_common())
            notes.append(f"excluded {counted(others.total(), 'slide')} with other labels: {what}")
        rows = [row | {"label": classes[row["label"]]} for row in rows if row["label"] in classes]
    rows, more = selected(rows, samples, strategy, by_sample=label == "sample_type")
    return sheet_of(rows, [*notes, *more], f"no open-access slide of {', '.join(projects)} remains")


def from_manifests(
    manifests: dict[str, Path] | list[tuple[str, Path]],
    sites: Path | None = None,
    strategy: str = "auto",
    samples: str = "auto",
) -> pd.DataFrame:
    """The same from manifests of the portal, each with its label; `sites` as `site_names` reads them."""
    names = site_names(sites) if sites else {}
    pairs = list(manifests.items()) if isinstance(manifests, dict) else manifests
    rows = []
    for label, path in pairs:
        for file in read_portal(path, ["id", "filename", "md5", "size"]):
            if not re.fullmatch("[0-9a-fA-F]{32}|", file["md5"]) or not re.fullmatch("[0-9]*", file["size"]):
                raise InputError(
                    f"{path}: {file['filename']}: {file['md5']}, {file['size']} is not a valid md5 and size; a "
                    "spreadsheet may have changed it: download it again from the portal"
                )
            row = row_of(file["filename"], file["id"], file["md5"], file["size"], names=names)
            if row:
                rows.append(row | {"label": label})
    rows, notes = selected(rows, samples, strategy, given=True)
    return sheet_of(rows, notes, f"no slide remains of {', '.join(str(path) for _, path in pairs)}")


def from_portal_sheets(
    paths: list[Path], label: str, sites: Path | None = None, strategy: str = "auto", samples: str = "auto"
) -> pd.DataFrame:
    """The same from sample sheets of the portal, which know projects, but neither sizes nor checksums."""
    names = site_names(sites) if sites else {}
    rows = []
    for path in paths:
        for file in read_portal(path, PORTAL[:3]):
            said = {column: words(file.get(column, "")) for column in PORTAL[3:]}
            types = (" and ".join(said[column]) for column in PORTAL[4:])
            row = row_of(
                file["File Name"],
                file["File ID"],
                names=names,
                patients=said["Case ID"],
                sample_type=sample_type_of(*types),
            )
            if row:
                rows.append(row | ({"label": file["Project ID"]} if label == "project" else {}))
    rows, notes = selected(rows, samples, strategy, by_sample=label == "sample_type")
    return sheet_of(rows, notes, f"no slide remains of {', '.join(map(str, paths))}")


def words(cell: str) -> list[str]:
    """The different words of a cell that has one for each of a file's samples."""
    return list(dict.fromkeys(word for part in cell.split(",") if (word := part.strip())))


def row_of_hit(file: SlideFile) -> Row | None:
    """The row of a file as the archive describes it, labelled by its sample type."""
    samples = [sample for case in file.cases for sample in case.samples or []]
    types = sorted({sample_type_of(s.sample_type, s.tissue_type, s.tumor_descriptor) for s in samples})
    site = file.cases[0].tissue_source_site
    return row_of(
        file.file_name,
        file.id,
        file.md5sum,
        file.file_size,
        site=site and site.name,
        patients=[case.submitter_id for case in file.cases],
        sample_type=" and ".join(types) or UNKNOWN,
        kind=STRATEGIES.get(file.experimental_strategy or "", UNKNOWN),
    )


def diagnoses_of(case: Case) -> list[str]:
    """The different diagnoses of a patient, those of the primary disease if the archive says which they are."""
    known = [(d.primary_diagnosis, d.diagnosis_is_primary_disease) for d in case.diagnoses or []]
    said = [(name, primary) for name, primary in known if name and name != "Not Reported"]
    return sorted({name for name, primary in said if primary} or {name for name, _ in said})


def row_of(
    filename, file_id, md5="", size="", site=None, names=None, patients=(), sample_type=UNKNOWN, kind=UNKNOWN
) -> Row | None:
    """A file's row, labelled by its sample type, by what is given and else by the file's name.

    None, with a line that names it, if it is of several patients, nothing says of whom, or the two contradict.
    """
    try:
        if len(several := sorted(set(patients))) > 1:
            raise InputError(f"{filename[:100]!r} belongs to several patients, {named(several)}")
        barcode = barcode_of(filename, next(iter(patients), ""))
        if {tissue_of(sample_type), tissue_of(barcode.sample_type)} == {TUMOUR, NORMAL}:
            raise InputError(
                f"{filename!r} is {barcode.sample_type} by its name, but {sample_type} according to the archive"
            )
    except InputError as error:
        logger.warning(f"excluded: {error}")
        return None
    if tissue_of(sample_type) in (UNKNOWN, OTHER) and barcode.sample_type != UNKNOWN:
        sample_type = barcode.sample_type
    if kind == UNKNOWN and barcode.kind != UNKNOWN:
        kind = DIAGNOSTIC if barcode.kind == KINDS["DX"] else FROZEN
    return {
        "slide": barcode.slide,
        "patient": barcode.patient,
        # A code without a name is a site of its own: two codes of one institution are then two sites.
        "site": " ".join((site or (names or {}).get(barcode.site) or barcode.site).split()),
        "label": sample_type,
        "sample_type": sample_type,
        "kind": kind,
        "source": f"gdc:{file_id}",
        "filename": filename,
        "md5": md5,
        "size": str(size),
    }


def barcode_of(filename: str, patient: str) -> Barcode:
    """What a file's name says; of one that is no barcode, that it is a slide of its patient, if that is known."""
    try:
        return parse_barcode(filename)
    except InputError:
        name = re.sub(r"([.][0-9A-Fa-f-]{36})?[.]svs$", "", filename)
        if not patient or not filename.endswith(".svs") or not re.fullmatch(NAME, name):
            raise
        return Barcode(name, patient, UNKNOWN, UNKNOWN, UNKNOWN)


def selected(
    rows: list[Row], samples: str, strategy: str, by_sample=False, given=False
) -> tuple[list[Row], list[Note]]:
    """Each file once, of the chosen tissue and kind, and what there is to say of the others."""
    rows, notes = each_once(rows)
    rows, more = chosen(rows, samples, strategy, by_sample, given)
    return rows, [*notes, *more]


def sheet_of(rows: list[Row], notes: list[Note], nothing: str) -> pd.DataFrame:
    """The rows in the order of their slides; of slides of one name each has the whole of its file's."""
    if not rows:
        raise InputError(f"{'; '.join([nothing, *notes])}; correct the query")
    for note in notes:
        logger.warning(note)
    sheet = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    twice = sheet["slide"].duplicated(keep=False)
    sheet.loc[twice, "slide"] = sheet.loc[twice, "filename"].str.removesuffix(".svs")
    sheet = sheet.sort_values("slide", ignore_index=True)
    sheet.attrs["notes"] = notes
    return sheet


def read_portal(path: Path, columns: list[str]) -> list[Row]:
    """The rows of a table of the portal. Raises InputError if it is none, or lacks one of the columns."""
    table = read_table(Path(path), [*PORTAL, "id", "filename", "md5", "size"], "table of the portal")
    if missing := [column for column in columns if column not in table]:
        raise InputError(
            f"{path}: has no column {', '.join(missing)}; download it again from the portal; {table.attrs['seen']}"
        )
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def site_names(path: Path) -> dict[str, str]:
    """Institutions by the code of a tissue source site, from a table with `site`, and `code` or `patient`.

    Raises InputError if a code has two institutions.
    """
    table = read_table(Path(path), ["site", "code", "patient"], "sites")
    if "site" not in table or not {"code", "patient"} & set(table):
        raise InputError(f"sites {path}: needs columns site, and code or patient; {table.attrs['seen']}")
    codes = table["code"] if "code" in table else table["patient"].str.slice(5, 7)
    pairs = set(zip(codes, table["site"], strict=True))
    names = dict(pairs)
    if twice := sorted(code for code, site in pairs if names[code] != site):
        raise InputError(f"sites {path}: code {twice[0]} has two institutions; correct it")
    return names


def refresh(client: Client, sheet: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The sheet with the ids, checksums and sizes that its files have in the latest release, by their names.

    Then the slides that changed, and those that the archive no longer has, whose rows are as they were. Raises
    InputError if the sheet does not know its slides' file names.
    """
    known = {"filename", "source"} <= set(sheet)
    if not known or not (fetched := sheet["source"].str.startswith("gdc:")).any():
        raise InputError("the sheet has no `gdc:` sources with a column `filename`; there is nothing to refresh")
    wanted = sorted(set(sheet.loc[fetched, "filename"]))
    released: dict[str, dict[str, File]] = {}
    for file in client.files(among("file_name", *wanted), File):
        released.setdefault(file.file_name, {})[f"gdc:{file.id}"] = file
    sheet, changed, gone = sheet.copy(), [], []
    for column in ("md5", "size"):
        if column not in sheet:
            sheet[column] = ""
    for i in sheet.index[fetched]:
        slide, filename, source = (str(sheet.at[i, column]) for column in ("slide", "filename", "source"))
        files = released.get(filename, {})
        if not files:
            gone.append(slide)
            continue
        if len(files) == 1:
            (source,) = files
        if source not in files:
            logger.warning(f"slide {slide}: the archive has {len(files)} files of this name; its row is unchanged")
            continue
        new = {"source": source, "md5": files[source].md5sum, "size": str(files[source].file_size)}
        if any(sheet.at[i, column] != value for column, value in new.items()):
            changed.append(slide)
            sheet.loc[i, list(new)] = list(new.values())
    return sheet, changed, gone
