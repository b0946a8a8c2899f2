"""Writes the table in operations.md, of what is registered: python docs/operations.py"""

from pathlib import Path

from gigapipe.spatial.operators.unpooling import adaptive_max_pool2d_with_indices
from gigapipe.spatial.refusals import name_of
from gigapipe.spatial.tensor import DECOMPOSED

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- from the registry -->\n", "<!-- to here -->\n"
KINDS = {
    "convolution": "convolution",
    "pooling": "pooling",
    "max_pooling": "max pooling",
    "unpooling": "max pooling",
    "normalisation": "normalisation",
    "resampling": "resampling",
    "pointwise": "pixelwise",
    "dropout": "dropout and random images",
    "reductions": "reductions",
    "composed": "composed of others",
    "contraction": "products along other dimensions",
    "shaping": "changing, joining and splitting dimensions",
    "reshaping": "reshaping",
    "indexing": "indexing",
    "losses": "pixelwise losses",
    "differentiation": "gradients",
}
SYMBOLS = {"__getitem__": "x[…]", "__iter__": "iteration", "__matmul__": "@"}


def table() -> str:
    """Each kind of operation and the names that torch has for them."""
    found: dict[str, set[str]] = {kind: set() for kind in KINDS.values()}
    for function, ours in DECOMPOSED.items():
        if not ours.__module__.startswith("gigapipe.spatial"):
            continue  # patch encoders' own
        name = name_of(function).rpartition(".")[2]
        name = SYMBOLS.get(name, name)
        if not name.startswith("_") and ours is not adaptive_max_pool2d_with_indices:
            found[KINDS[ours.__module__.rpartition(".")[2]]].add(f"`{name}`")
    rows = [f"| {kind} | {', '.join(sorted(names))} |" for kind, names in found.items()]
    return "\n".join(["| kind | operations |", "|---|---|", *rows]) + "\n"


def page(text: str) -> str:
    """`text` with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
