"""Which of the slides that were found are a cohort's: of one tissue and kind, each file once. The rest is counted.

A row is a slide's, by the columns of the sheet. A note says, in a line, what was left out, or is not sure.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from gigapipe.errors import InputError
from gigapipe.gdc.barcodes import DIAGNOSTIC, FROZEN, NORMAL, TUMOUR, UNKNOWN, tissue_of
from gigapipe.plural import counted
from gigapipe.slides.sheet import checksum

Row = dict[str, str]
Note = str

SHOWN = 3  # names in a note, of as many as there are


def named(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    every = list(dict.fromkeys(names))
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def each_once(rows: list[Row]) -> tuple[list[Row], list[Note]]:
    """The rows without files that are there before, and without those of which nobody knows whose they are.

    That is a file name with two ids, of two releases; and a file (by its md5) under two patients or labels.
    Raises InputError if a file has two labels under one id: what was given contradicts itself.
    """
    notes = []
    first: dict[str, Row] = {}
    again = []
    for row in rows:
        known = first.setdefault(row["source"].lower(), row)
        if known is not row:
            again.append(row["filename"])
            if known["label"] != row["label"]:
                raise InputError(
                    f"{row['filename']}: is listed under the labels {known['label']} and {row['label']}; remove one"
                )
    if again:
        notes.append(f"used {counted(len(set(again)), 'slide')} once, although listed more than once: {named(again)}")
    rows, out = _parted(list(first.values()), lambda row: row["filename"], lambda same: True)
    if out:
        ids = named(f"{row['filename']} ({row['source']})" for row in out)
        notes.append(f"excluded {counted(len(out), 'slide')} whose file names have two ids, from two releases: {ids}")
    rows, out = _parted(rows, _md5, lambda same: len({(row["patient"], row["label"]) for row in same}) > 1)
    if out:
        names = named(row["slide"] for row in out)
        notes.append(
            f"excluded {counted(len(out), 'slide')} that are the same file (md5) for two patients or labels: {names}"
        )
    first = {}
    kept = [row for row in rows if not _md5(row) or first.setdefault(_md5(row), row) is row]
    if len(kept) < len(rows):
        names = named(row["slide"] for row in rows if row not in kept)
        notes.append(
            f"excluded {counted(len(rows) - len(kept), 'slide')} that are the same file (md5) as another slide of the "
            f"patient: {names}"
        )
    return kept, notes


def _md5(row: Row) -> str:
    return checksum(row["md5"])


def _parted(
    rows: list[Row], key: Callable[[Row], str], doubtful: Callable[[list[Row]], bool]
) -> tuple[list[Row], list[Row]]:
    """The rows, and those that have a `key` in common and are `doubtful`."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    kept: list[Row] = []
    out: list[Row] = []
    for value, same in groups.items():
        (out if value and len(same) > 1 and doubtful(same) else kept).extend(same)
    return kept, out


def chosen(rows: list[Row], samples: str, strategy: str, by_sample: bool, given: bool) -> tuple[list[Row], list[Note]]:
    """The rows of the tissue that is `samples`, and of the kind that is `strategy`, as the config has them.

    auto is tumour, and with labels `by_sample` normal tissue, too; and of that diagnostic slides if there are any, else
    frozen ones. Where one label is normal tissue's, frozen ones come first, for hospitals rarely embed it in paraffin.
    If labels were `given` by hand, one without any tumour is taken for such a label. What is not known to be of another
    tissue or kind stays.
    """
    kept, notes = _of_tissue(rows, samples, by_sample, given)
    kept, more = _of_kind(kept, strategy)
    lost = sorted({row["label"] for row in rows} - {row["label"] for row in kept})
    return kept, [*notes, *more, *(f"no slide with label {label} remains" for label in lost)]


def _tissues(rows: list[Row], column: str) -> dict[str, set[str]]:
    """Of which tissues the slides are that have a value in `column`."""
    found = defaultdict(set)
    for row in rows:
        found[row[column]].add(tissue_of(row["sample_type"]))
    return found


def _of_tissue(rows: list[Row], samples: str, by_sample: bool, given: bool) -> tuple[list[Row], list[Note]]:
    if samples == "all":
        return rows, []
    wanted = {TUMOUR if samples == "auto" else samples, UNKNOWN} | (
        {NORMAL} if samples == "auto" and by_sample else set()
    )
    whole = set()
    if given and samples == "auto":
        whole = {label for label, found in _tissues(rows, "label").items() if not found & {TUMOUR, UNKNOWN}}
    kept = [row for row in rows if row["label"] in whole or tissue_of(row["sample_type"]) in wanted]
    notes = []
    if len(kept) < len(rows):
        types = Counter(row["sample_type"] for row in rows) - Counter(row["sample_type"] for row in kept)
        of = " and ".join(f"{counted(number, 'slide')} of {name}" for name, number in types.most_common())
        notes.append(f"excluded {of} (--samples all includes them)")
    if unsaid := [row["slide"] for row in kept if row["sample_type"] == UNKNOWN]:
        notes.append(f"included {counted(len(unsaid), 'slide')} of unknown tissue, tumour or normal: {named(unsaid)}")
    return kept, notes


def _of_kind(rows: list[Row], strategy: str) -> tuple[list[Row], list[Note]]:
    kinds = _tissues(rows, "kind")
    known = [kind for kind in (DIAGNOSTIC, FROZEN) if kind in kinds]
    if strategy == "all" or not known:
        return rows, []
    if strategy == "auto":
        of_labels = _tissues(rows, "label").values()
        if {NORMAL} in of_labels and any(TUMOUR in found for found in of_labels):
            known = [kind for kind in reversed(known) if kinds[kind] >= {NORMAL, TUMOUR}] or known
        wanted = known[0]
    else:
        wanted = DIAGNOSTIC if strategy == "Diagnostic Slide" else FROZEN
    kept = [row for row in rows if row["kind"] in (wanted, UNKNOWN)]
    if len(kept) == len(rows):
        return rows, []
    other = FROZEN if wanted == DIAGNOSTIC else DIAGNOSTIC
    without = len({row["patient"] for row in rows} - {row["patient"] for row in kept})
    of = f", all slides of {counted(without, 'patient')}" if without else ""
    return kept, [f"excluded {counted(len(rows) - len(kept), f'{other} slide')}{of} (--strategy all includes them)"]
