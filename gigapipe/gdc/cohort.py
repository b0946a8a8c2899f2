"""Sample sheets of cohorts: from a query, or from a manifest or a sample sheet of the GDC's portal."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

import gigapipe
from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError
from gigapipe.gdc.barcodes import parse_barcode
from gigapipe.gdc.client import Client

logger = logging.getLogger(__name__)

COLUMNS = ["slide", "patient", "site", "label", "source", "filename", "md5", "size"]
FIELDS = [
    "file_name",
    "md5sum",
    "file_size",
    "cases.submitter_id",
    "cases.project.project_id",
    "cases.tissue_source_site.name",
    "cases.diagnoses.primary_diagnosis",
]


def among(field: str, *values: str) -> dict:
    """The API's filter for a field that has one of the values."""
    return {"op": "in", "content": {"field": field, "value": list(values)}}


def query(
    client: Client, projects: list[str], strategy: str, label: str, classes: dict[str, str] | None = None
) -> pd.DataFrame:
    """The open SVS slides of `projects`: a row each with `COLUMNS`, all text, ordered by slide.

    `strategy` is the API's experimental strategy (Diagnostic Slide, Tissue Slide). `label` is `project`, `sample_type`
    as the barcode has it, or `primary_diagnosis`; with `classes` (names by values) only slides of one of the values
    stay, under its name. A site is the institution's name. Files that are no TCGA slides are named in a warning, and
    left out; InputError if none remains.
    """
    chosen = [
        among("cases.project.project_id", *projects),
        among("data_format", "SVS"),
        among("experimental_strategy", strategy),
        among("access", "open"),
    ]
    rows = []
    for file in client.files({"op": "and", "content": chosen}, FIELDS):
        case = file["cases"][0]
        site = case.get("tissue_source_site", {}).get("name")
        row = row_of(file["file_name"], file["id"], file["md5sum"], file["file_size"], site)
        if row and label == "project":
            row["label"] = case["project"]["project_id"]
        if row and label == "primary_diagnosis":
            row["label"] = (
                " and ".join(sorted({d["primary_diagnosis"] for d in case.get("diagnoses", [])})) or "unknown"
            )
        if row and classes:
            row["label"] = classes.get(row["label"])
        if row and row["label"]:
            rows.append(row)
    return sheet_of(
        rows, f"no open slide is a {strategy} of {', '.join(projects)}, with the labels that were asked for"
    )


def from_manifests(manifests: dict[str, Path], sites: Path | None = None) -> pd.DataFrame:
    """The same from manifests of the portal, one for each label; `sites` as `site_names` reads them."""
    names = site_names(sites) if sites else {}
    rows = []
    for label, path in manifests.items():
        for file in read_portal(path, ["id", "filename", "md5", "size"]):
            row = row_of(file["filename"], file["id"], file["md5"], file["size"], names=names)
            if row:
                rows.append(row | {"label": label})
    return sheet_of(rows, f"no slide is in {', '.join(map(str, manifests.values()))}")


def from_portal_sheets(paths: list[Path], label: str, sites: Path | None = None) -> pd.DataFrame:
    """The same from sample sheets of the portal, which know projects, but neither sizes nor checksums."""
    names = site_names(sites) if sites else {}
    rows = []
    for path in paths:
        for file in read_portal(path, ["File ID", "File Name", "Project ID"]):
            row = row_of(file["File Name"], file["File ID"], names=names)
            if row:
                rows.append(row | ({"label": file["Project ID"]} if label == "project" else {}))
    return sheet_of(rows, f"no slide is in {', '.join(map(str, paths))}")


def row_of(filename, file_id, md5="", size="", site=None, names=None) -> dict | None:
    """A file's row, labelled by its sample type; None, with a line that names it, if it is no TCGA slide."""
    try:
        barcode = parse_barcode(filename)
    except InputError as error:
        logger.warning(f"left out: {error}")
        return None
    return {
        "slide": barcode.slide,
        "patient": barcode.patient,
        # A code without a name is a site of its own: two codes of one institution are then two sites.
        "site": " ".join((site or (names or {}).get(barcode.site) or barcode.site).split()),
        "label": barcode.sample_type,
        "source": f"gdc:{file_id}",
        "filename": filename,
        "md5": md5,
        "size": str(size),
    }


def sheet_of(rows: list[dict], nothing: str) -> pd.DataFrame:
    """The rows in the order of their slides; of slides of one name each has the whole of its file's."""
    if not rows:
        raise InputError(f"{nothing}; correct what was asked for")
    sheet = pd.DataFrame(rows, columns=COLUMNS).astype(str)
    twice = sheet["slide"].duplicated(keep=False)
    sheet.loc[twice, "slide"] = sheet.loc[twice, "filename"].str.removesuffix(".svs")
    return sheet.sort_values("slide", ignore_index=True)


def read_portal(path: Path, columns: list[str]) -> list[dict]:
    """The rows of a table of the portal. Raises InputError if it is none, or lacks one of the columns."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"{path}: has no column {', '.join(missing)}; download it again from the GDC's portal")
    return table.to_dict("records")


def site_names(path: Path) -> dict[str, str]:
    """Institutions by the code of a tissue source site, from a table with `site`, and `code` or `patient`.

    Comma-separated if its name ends in `.csv`, else tab-separated. Raises InputError if a code has two institutions.
    """
    try:
        table = pd.read_csv(path, sep="," if path.suffix.lower() == ".csv" else "\t", dtype=str, keep_default_na=False)
        codes = table["code"] if "code" in table else table["patient"].str.slice(5, 7)
        pairs = set(zip(codes, table["site"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        needed = "it needs columns site, and code or patient"
        raise InputError(f"sites {path}: cannot be read ({error}); {needed}") from None
    names = dict(pairs)
    if twice := sorted(code for code, site in pairs if names[code] != site):
        raise InputError(f"sites {path}: code {twice[0]} has two institutions; correct it")
    return names


def write_sheet(sheet: pd.DataFrame, path: Path, asked: str) -> None:
    """Write a sample sheet whose first line, a comment, says when and what was asked."""
    size = pd.to_numeric(sheet["size"], errors="coerce").sum() / 1e9
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(f"# gigapipe {gigapipe.__version__}, {when}: {asked}; {len(sheet)} slides, {size:.1f} GB\n")
        sheet.to_csv(file, sep="\t", index=False)


def refresh(client: Client, sheet: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The sheet with the ids, checksums and sizes that its files have in the latest release, by their names.

    Then the slides that changed, and those that the archive no longer has, whose rows are as they were. Raises
    InputError if the sheet does not know its slides' file names.
    """
    if "filename" not in sheet or not (fetched := sheet["source"].str.startswith("gdc:")).any():
        raise InputError("the sheet has no `gdc:` sources with a column `filename`; nothing can be refreshed")
    wanted = sorted(set(sheet.loc[fetched, "filename"]))
    released = {file["file_name"]: file for file in client.files(among("file_name", *wanted), FIELDS[:3])}
    sheet, changed, gone = sheet.copy(), [], []
    for i in sheet.index[fetched]:
        slide = str(sheet.at[i, "slide"])
        file = released.get(sheet.at[i, "filename"])
        if file is None:
            gone.append(slide)
            continue
        new = {"source": f"gdc:{file['id']}", "md5": file["md5sum"], "size": str(file["file_size"])}
        if any(sheet.at[i, column] != value for column, value in new.items()):
            changed.append(slide)
            sheet.loc[i, list(new)] = list(new.values())
    return sheet, changed, gone
