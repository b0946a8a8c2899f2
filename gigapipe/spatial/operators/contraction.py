"""Sums of products along dimensions that are not divided: linear layers, matrices, Einstein's notation."""

import string

import torch
import torch.nn.functional as F

from gigapipe.spatial.gradients import leave
from gigapipe.spatial.operators.shaping import undivided
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes


@decomposes(F.linear)
def linear(x, weight, bias=None):
    undivided(x, -1, "linear")
    return x.with_local(F.linear(x.local, weight, bias))


@decomposes(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
def matmul(x, other):
    """Of an image whose channels are its last dimension, and a plain matrix or vector."""
    if isinstance(other, torch.Tensor) and not isinstance(x, SpatialTensor):
        raise NotDecomposed("matmul of a matrix and an image", "use einsum, or a convolution of 1 × 1")
    if isinstance(other, SpatialTensor) or other.dim() > 2:
        raise NotDecomposed("matmul of matrices that images are", "use einsum along the channels")
    undivided(x, -1, "matmul")
    return x.with_local(x.local @ other)


def _spelled_out(equation: str, dims: list[int]) -> tuple[str, str]:
    """Inputs and output of an equation for operands of so many dimensions, with letters for each ellipsis."""
    inputs, arrow, output = equation.partition("->")
    if not arrow:
        output = "..." * ("..." in inputs) + "".join(
            sorted(c for c in set(inputs) - {",", "."} if inputs.count(c) == 1)
        )
    if "..." in inputs:
        terms = inputs.split(",")
        covered = [d - len(term) + 3 if "..." in term else 0 for term, d in zip(terms, dims, strict=True)]
        free = "".join(c for c in string.ascii_letters if c not in equation)[: max(covered)]
        terms = [term.replace("...", free[len(free) - n :]) for term, n in zip(terms, covered, strict=True)]
        inputs, output = ",".join(terms), output.replace("...", free)
    return inputs, output


@decomposes(torch.einsum)
def einsum(equation, *operands):
    """With rows and columns in the result, an image; with both summed over, a plain tensor."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    first = next(x for x in operands if isinstance(x, SpatialTensor))
    if not isinstance(equation, str):
        raise NotDecomposed("einsum of lists of numbers", "name each dimension by a letter")
    inputs, output = _spelled_out(equation.replace(" ", ""), [x.dim() for x in operands])
    terms = inputs.split(",")
    letters = [terms[[x is first for x in operands].index(True)][axis] for axis in first.axes]
    kept = [letter in output for letter in letters]
    owned = dict(zip(letters, zip(first.image_size, first.rectangle, strict=True), strict=True))
    local = []
    for x, term in zip(operands, terms, strict=True):
        if isinstance(x, SpatialTensor):
            if [term[axis] for axis in x.axes] != letters or x.image_size != first.image_size:
                raise NotDecomposed(
                    f"einsum {equation} of images that lie otherwise", "give rows and columns one letter"
                )
            if any(term.count(letter) > 1 for letter in letters):
                raise NotDecomposed(f"einsum {equation} along a diagonal of an image", "use simpler operations")
            local.append(x.local)
            continue
        for d, letter in enumerate(term):
            if letter in owned:
                size, interval = owned[letter]
                if x.shape[d] != size:
                    raise NotDecomposed(f"einsum {equation} of {tuple(x.shape)}", f"its {letter} must be {size} long")
                x = x.narrow(d, interval.start, interval.size)
        local.append(x)
    if kept[0] != kept[1]:
        raise NotDecomposed(f"einsum {equation} over rows or columns alone", "sum over both or neither")
    found = torch.einsum(f"{inputs}->{output}", *local)
    if kept[0]:
        return first.with_local(found, (output.index(letters[0]), output.index(letters[1])))
    return leave(found, first.mesh, first.batch)
