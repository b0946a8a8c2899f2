"""TCGA barcodes: whose slide it is, from which hospital, of which tissue, and of what kind."""

import re
from dataclasses import dataclass

from gigapipe.errors import InputError

KINDS = {"DX": "diagnostic", "TS": "top", "MS": "middle", "BS": "bottom"}  # the last three are frozen sections
SAMPLE_TYPES = {"01": "primary tumour", "02": "recurrent tumour", "06": "metastasis", "11": "normal tissue"}
BARCODE = re.compile(
    r"(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})-(?P<sample>\d{2})[A-Z]?-\d{2}-(?P<kind>DX|TS|MS|BS)[A-Z0-9]{1,2}"
)
FILE = re.compile(r"(?P<barcode>[^.]*)(\.[A-Za-z0-9-]{1,64})?(\.svs)?")


@dataclass(frozen=True)
class Barcode:
    """A slide's barcode, taken apart."""

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
    match = file and BARCODE.fullmatch(file["barcode"])
    if not match:
        raise InputError(f"{name[:100]!r} is not the name of a TCGA slide, as TCGA-38-4631-01Z-00-DX1 is")
    sample_type = SAMPLE_TYPES.get(match["sample"], f"sample type {match['sample']}")
    return Barcode(match[0], match["patient"], match["site"], sample_type, KINDS[match["kind"]])
