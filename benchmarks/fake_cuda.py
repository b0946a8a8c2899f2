"""A CUDA that is not there, and a watch on what is done on it: whole training steps on a machine without a GPU.

Tensors have shapes, dtypes, strides and a device, but no memory (torch's FakeTensorMode), so that any rank of any mesh
can run its step at full size; the process group `fake` sends nothing. `Watch` sees what torch does with them below
autograd. It sees neither time nor values, nor what a kernel demands of its arguments but for what `refuse` was taught.

To be imported before torch. Needs a C++ compiler, and a torch without CUDA.
"""

# ruff: noqa: E402  torch comes after what it is to find
import collections
import contextlib
import ctypes
import functools
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tempfile
import types
import warnings
import weakref
from pathlib import Path

TORCH = Path(importlib.util.find_spec("torch").origin).parent
GIGAPIPE = Path(importlib.util.find_spec("gigapipe").origin).parent


BUILT = "FAKE_CUDA"
"""The variable that names the library, where somebody has built it before: `python benchmarks/fake_cuda.py LIBRARY`."""


def build(library: Path) -> Path:
    torchs = f"{TORCH}/lib"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or "clang++"
    command = [compiler, "-std=c++20", "-shared", "-fPIC", Path(__file__).with_suffix(".cpp"), "-o", library]
    command += [f"-I{TORCH}/include", f"-L{torchs}", f"-Wl,-rpath,{torchs}", "-lc10", "-ltorch_cpu", "-ltorch"]
    subprocess.run(command, check=True)
    return library


def _load() -> None:
    """Build the CUDA that is not there, and load it."""
    if "torch" in sys.modules:
        raise RuntimeError("import fake_cuda before torch: it must be there when torch looks for CUDA")
    if (TORCH / "lib" / "libtorch_cuda.so").exists():
        raise RuntimeError("this torch knows CUDA; the watch needs a CPU build")
    with tempfile.TemporaryDirectory() as folder:
        library = os.environ.get(BUILT) or build(Path(folder) / "fake_cuda.so")
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    sys.exit()
_load()

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor as FAKE
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigapipe.spatial import Mesh, constant, costs, planning, recording, speed
from gigapipe.spatial.recording import without_pixels

warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # only compared
aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
LARGE = 100_000  # elements
COPIES = {aten._to_copy.default, aten.copy_.default}


def where() -> str:
    """The innermost function of gigapipe that is running."""
    frame = sys._getframe(1)
    while frame:
        if file := _of_gigapipe(frame.f_code.co_filename):
            return f"{file}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "outside gigapipe"


@functools.cache
def _of_gigapipe(file: str) -> str | None:
    """Its path in gigapipe, if it is there."""
    path = Path(file)
    return str(path.relative_to(GIGAPIPE)) if path.is_relative_to(GIGAPIPE) else None


class Refused(RuntimeError):
    """What a kernel of CUDA would have refused."""


def refuse(function, args) -> None:
    """Raise Refused where CUDA's kernels demand more than the CPU's, as far as their sources were read."""
    if function is aten.native_batch_norm_backward.default:
        saved, mask = args[5:7], args[9]
        if not mask[0] and any(s is None for s in saved):
            raise Refused("native_batch_norm_backward: save_mean should always be defined (Normalization.cu)")
    if function is aten.batch_norm_backward_reduce.default and args[4] is None and (args[6] or args[7]):
        raise Refused("batch_norm_backward_reduce: gradients of a weight that is not there (Normalization.cuh)")


class Watch(TorchDispatchMode):
    """Counts, of what is done on the device: operations, host synchronisations, collectives, and bytes at a time.

    `faults` are operations that mix devices, and large images that lose their layout (channels_last) or their dtype
    (float64 of any, float32 of bfloat16), each by where in gigapipe it is. `without_float64`, so is any float64 at all.
    """

    without_float64 = False

    def __init__(self):
        super().__init__()
        self.known: set[int] = set()
        self.alive = 0
        self.shapes_alone = False
        self.reset()

    def reset(self) -> None:
        """Count from here; what is alive stays."""
        self.operations, self.syncs, self.collectives, self.faults = (collections.Counter() for _ in range(4))
        self.most, self.most_in = self.alive, "what was there"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten.record_stream.default:  # of memory that is not there
            return None
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if function is aten._local_scalar_dense.default:
            if given[0].is_cuda:
                self.syncs[where()] += 1
            if isinstance(given[0], FAKE):
                return _some_number(given[0])
        for t in given:
            if isinstance(t, FAKE):
                t.constant = None  # a small value that torch remembers, which it would compute with on a real device
        if self.shapes_alone:
            return function(*args, **kwargs)
        if any(t.is_cuda for t in given):
            refuse(function, args)
        kinds = {t.device.type for t in given if t.dim()}
        if len(kinds) > 1 and function not in COPIES and function.namespace != "c10d":
            self.faults[f"{function} mixes cpu and cuda in {where()}"] += 1
        made = self.run(function, args, kwargs)
        results = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        for t in results:
            if t.is_cuda:
                self.hold(t)
        self.note(function, given, results, _without_waiting(args, kwargs))
        return made

    def run(self, function, args, kwargs):
        """What CUDA makes, where tensors without memory know no better: cuDNN keeps channels_last."""
        made = function(*args, **kwargs)
        if function is aten.convolution.default and _last(args[0], args[1]):
            return made.contiguous(memory_format=torch.channels_last)
        if function is aten.convolution_backward.default and _last(args[1], args[2]):
            images = (m if m is None else m.contiguous(memory_format=torch.channels_last) for m in made[:2])
            return *images, made[2]
        return made

    def note(self, function, given, results, without_waiting: bool) -> None:
        name = function.overloadpacket.__name__
        if function.namespace == "c10d":
            self.collectives[name.rstrip("_")] += 1
            if not all(t.is_cuda for t in given):
                self.faults[f"{name} is given a tensor of the host's, which NCCL refuses, in {where()}"] += 1
            return
        on_device = [t for t in (*given, *results) if t.is_cuda]
        if not on_device:
            return
        if self.without_float64 and _makes_float64(function, given, results):
            self.faults[f"{name} makes float64 of a device that has none in {where()}"] += 1
        if function in COPIES and given[-1].is_cuda and not results[0].is_cuda and not without_waiting:
            self.syncs[where()] += 1  # the host waits for what comes to it
        if not function.is_view and "empty" not in name and name not in ("detach", "alias", "device"):
            self.operations[name] += 1
        images = [t for t in given if t.is_cuda and _is_image(t)]
        for t in results:
            if not t.is_cuda or not _is_image(t) or function.is_view or name[-1] == "_":
                continue
            of_sixteen = images and all(i.dtype == torch.bfloat16 for i in images)
            if t.dtype == torch.float64 or (t.dtype == torch.float32 and of_sixteen):
                self.faults[f"{name} makes an image in {t.dtype} in {where()}"] += 1
            if _last(*images) and not _last(t) and not t.is_contiguous(memory_format=torch.channels_last):
                self.faults[f"{name} loses channels_last in {where()}"] += 1

    @contextlib.contextmanager
    def not_looking(self):
        """In place of `without_pixels`, in which shapes are found out: no device would do anything."""
        before, self.shapes_alone = self.shapes_alone, True
        with without_pixels():
            yield
        self.shapes_alone = before

    def hold(self, x: torch.Tensor) -> None:
        """Count the memory of a tensor, as CUDA's allocator rounds it, until it is freed."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            size = -(-storage.nbytes() // 512) * 512
            self.known.add(key)
            self.alive += size
            if self.alive > self.most:
                self.most, self.most_in = self.alive, where()
            weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def _without_waiting(args, kwargs) -> bool:
    """Whether a copy to the host is one that the host does not wait for."""
    return bool(kwargs.get("non_blocking") or args[2:] and args[2] is True)


def _makes_float64(function, given, results) -> bool:
    """Whether a device would have float64; it converts what it sends before it does."""
    sent = function in COPIES and given[-1].is_cuda and given[-1].dtype != torch.float64
    return any(t.dtype == torch.float64 and (t.is_cuda or sent) for t in results)


def _is_image(t: torch.Tensor) -> bool:
    """Whether it may be an image whose layout and dtype matter, and no weight."""
    return t.dim() == 4 and t.shape[2] * t.shape[3] > 49 and t.numel() > LARGE


def _last(*tensors: torch.Tensor) -> bool:
    """Whether one of them lies in channels_last, if perhaps with gaps, as kernels choose by."""
    return any(t.dim() == 4 and t.stride(1) == 1 and t.stride(3) >= t.shape[1] > 1 for t in tensors)


def _some_number(x: torch.Tensor):
    """In place of a value that nobody knows: no answer is yes, and what a device counted was there once."""
    return False if x.dtype == torch.bool else 1.0 if x.dtype.is_floating_point else int(x.is_cuda)


def _apply(module, change, recurse: bool = True):
    """`nn.Module._apply`, which cannot exchange parameters without memory, but by new ones."""
    for child in module.children():
        child._apply(change)
    for name, p in module._parameters.items():
        if p is not None:
            module._parameters[name] = torch.nn.Parameter(change(p.detach()), requires_grad=p.requires_grad)
    for name, b in module._buffers.items():
        if b is not None:
            module._buffers[name] = change(b)
    return module


def _to_host(method: str, watch: Watch):
    """Tensor.numpy or .tolist as they are of a GPU's tensors: numpy refuses, the other waits."""
    real = getattr(torch.Tensor, method)

    def ours(self, *args, force: bool = False):
        if self.is_cuda:
            if method == "numpy" and not force:
                raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu()")
            watch.syncs[where()] += 1
        if not isinstance(self, FAKE):
            return real(self, *args, **({"force": force} if method == "numpy" else {}))
        zeros = np.zeros(tuple(self.shape), dtype=np.float32 if self.is_floating_point() else np.int64)
        return zeros if method == "numpy" else zeros.tolist()

    return ours


@contextlib.contextmanager
def pretended(rank: int, ranks: int):
    """The fake CUDA, as rank `rank` of `ranks` of a process group that says it is NCCL; gives the watch on it.

    Once a process.
    """
    watch = Watch()
    answers = {
        torch.cuda: {
            "is_available": True, "device_count": 1, "current_device": 0, "set_device": None, "synchronize": None,
            "get_device_name": "fake",
            "memory_allocated": 0, "max_memory_allocated": 0, "is_bf16_supported": True,
            "get_device_properties": types.SimpleNamespace(uuid="fake"),
        },
    }  # fmt: skip
    for module, functions in answers.items():
        for name, answer in functions.items():
            setattr(module, name, functools.partial(lambda answer, *args, **kwargs: answer, answer))
    torch.bincount = lambda labels, minlength: torch.ones(minlength, dtype=torch.int64)
    torch.nn.Module._apply = _apply
    for method in ("numpy", "tolist"):
        setattr(torch.Tensor, method, _to_host(method, watch))
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    dist.get_backend, dist.get_backend_config = lambda group=None: "nccl", lambda group=None: "cuda:nccl"
    recording.without_pixels = costs.without_pixels = watch.not_looking
    constant.Sample.alike = lambda *_: False  # as no answer is yes: the host would look at each cell for longer
    planning.speed_of = lambda device: (speed.CPU._replace(caches=0.0), "")  # it has none
    with without_pixels(), watch:
        yield watch


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    """The mesh of the ranks that `pretended` was told of, on the device."""
    mesh = Mesh(*shape)
    mesh.device = CUDA
    return mesh


def interior(shape: tuple[int, int, int]) -> int:
    """The rank in the middle of a mesh, which has neighbours on all sides."""
    data, rows, columns = shape
    return (data // 2) * rows * columns + (rows // 2) * columns + columns // 2


def place_of(where: str, shape: tuple[int, int, int]) -> int:
    """The rank in a corner, at the middle of an edge, or in the interior of a mesh."""
    _, rows, columns = shape
    return {"corner": 0, "edge": columns // 2, "interior": interior(shape)}[where] % math.prod(shape)
