"""Slides' file names: whose slide it is, from which hospital, of which tissue, and of what kind.

The Cancer Genome Atlas and most other programs of the archive name a slide by its barcode; CPTAC by patient and number.
"""

import re
from dataclasses import dataclass

from gigapipe.errors import InputError

UNKNOWN = "unknown"
DIAGNOSTIC, FROZEN = "diagnostic", "frozen"
TUMOUR, NORMAL, OTHER = "tumour", "normal", "other"

KINDS = {"DX": "diagnostic", "TS": "top", "MS": "middle", "BS": "bottom"}  # the last three are frozen sections
STRATEGIES = {"Diagnostic Slide": DIAGNOSTIC, "Tissue Slide": FROZEN}  # of the archive
TUMOURS = {
    "01": "primary tumour",
    "02": "recurrent tumour",
    "03": "blood cancer",
    "04": "recurrent cancer of the bone marrow",
    "05": "additional primary tumour",
    "06": "metastasis",
    "07": "additional metastasis",
    "08": "tumour cells",
    "09": "cancer of the bone marrow",
    "40": "recurrent blood cancer",
}
NORMALS = {
    "10": "normal blood",
    "11": "normal tissue",
    "12": "normal buccal cells",
    "13": "normal blood, EBV-immortalised",
    "14": "normal bone marrow",
}
# What the archive calls them: first in sample_type, then, from 2025, in tumor_descriptor.
SAMPLE_TYPES = {
    "primary tumor": "01",
    "recurrent tumor": "02",
    "additional - new primary": "05",
    "metastatic": "06",
    "additional metastatic": "07",
    "blood derived normal": "10",
    "solid tissue normal": "11",
    "buccal cell normal": "12",
    "bone marrow normal": "14",
}
NOT_SAID = {"", "unknown", "not reported", "--", "'--"}
DESCRIPTORS = {"primary": "01", "recurrence": "02", "metastatic": "06", "new primary": "05"}

TCGA = re.compile(
    r"(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})-(?P<sample>\d{2})[A-Z]?-\d{2}-(?P<kind>DX|TS|MS|BS)[A-Z0-9]{1,2}"
)
OTHERS = [
    # As HCM-BROD-0002-C71-01A-01-S1-HE, BROD being the hospital; BLGSP-71-06-00001-01A-01-S1; C3L-00001-21.
    re.compile(
        r"(?P<patient>HCM-(?P<site>[A-Z]{2,5})-\d{4}-[A-Z]\d{2})-(?P<sample>\d{2})[A-Z]-\d{2}(-[A-Z0-9]{1,8}){1,4}"
    ),
    re.compile(
        r"(?P<patient>(?!TCGA-)[A-Z0-9]{2,12}(-[A-Z0-9]{2,8}){2,4}?)-(?P<sample>\d{2})[A-Z]-\d{2}[A-Z]?(-[A-Z0-9]{1,8}){1,4}"
    ),
    re.compile(r"(?P<patient>C3[LN]-\d{5})-\d{2}"),
]
FILE = re.compile(r"(?P<barcode>[^.]*)(\.[A-Za-z0-9-]{1,64})?(\.svs)?")


@dataclass(frozen=True)
class Barcode:
    """A slide's barcode, taken apart; `unknown` is what it does not say."""

    slide: str  # TCGA-38-4631-01Z-00-DX1
    patient: str  # TCGA-38-4631
    site: str  # 38: the code of the tissue source site
    sample_type: str  # primary tumour, or normal tissue, …
    kind: str  # diagnostic, or a frozen section's top, middle or bottom


def parse_barcode(name: str) -> Barcode:
    """The barcode that a slide's file name begins with (`TCGA-38-4631-01Z-00-DX1.5e0c873a-….svs`), or that it is.

    Raises InputError, naming it, if it is none.
    """
    file = FILE.fullmatch(name)
    if file and (match := TCGA.fullmatch(file["barcode"])):
        return Barcode(match[0], match["patient"], match["site"], of_code(match["sample"]), KINDS[match["kind"]])
    for pattern in OTHERS:
        if file and (match := pattern.fullmatch(file["barcode"])):
            said = match.groupdict(UNKNOWN)
            code = said.get("sample")
            return Barcode(
                match[0], said["patient"], said.get("site", UNKNOWN), of_code(code) if code else UNKNOWN, UNKNOWN
            )
    raise InputError(
        f"{name[:100]!r} is neither the name of a TCGA slide, as TCGA-38-4631-01Z-00-DX1, nor of another program, as "
        "HCM-BROD-0002-C71-01A-01-S1-HE"
    )


def of_code(code: str) -> str:
    """The sample type of two digits."""
    return (TUMOURS | NORMALS).get(code, f"sample type {code}")


def sample_type_of(sample_type: str | None, tissue_type: str | None, descriptor: str | None) -> str:
    """The sample type in the archive's words, of before 2025 or of now; `unknown` if they do not say it."""
    old, tissue, which = ((word or "").strip().lower() for word in (sample_type, tissue_type, descriptor))
    if old in SAMPLE_TYPES:
        return of_code(SAMPLE_TYPES[old])
    if tissue == "normal":
        return of_code("11")
    if tissue == "tumor":
        return of_code(DESCRIPTORS[which]) if which in DESCRIPTORS else TUMOUR
    return next((said for said in (old, tissue) if said not in NOT_SAID), UNKNOWN)


def tissue_of(sample_type: str) -> str:
    """`tumour`, `normal`, `other` (cells in culture, …), or `unknown`."""
    if sample_type == UNKNOWN:
        return UNKNOWN
    if sample_type in NORMALS.values():
        return NORMAL
    return TUMOUR if sample_type in {TUMOUR, *TUMOURS.values()} else OTHER
