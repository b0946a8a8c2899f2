"""The promise: the same gradients on any number of ranks as on one."""

import functools

import pytest
import torch
from conftest import gigapipe, run_ranks

from gigapipe.models import resnet18
from gigapipe.spatial import Mesh, SpatialTensor


@functools.cache
def cases(ranks: int) -> list[dict]:
    return run_ranks("ranks_exactness.py", ranks)


@pytest.mark.parametrize("ranks, meshes", [(1, 1), (2, 3), (4, 3)])
def test_resnet18_trains_as_if_undivided(ranks, meshes):
    trained = [case for case in cases(ranks) if "gradient" in case]
    assert len(trained) == 2 * meshes + 1
    for case in trained:
        print(case)
        assert case["loss"] <= 1e-10, case
        assert case["gradient"] <= 1e-10, case
        assert case["weights"] <= 1e-9, case
        assert case["statistics"] <= 1e-9, case
        assert case["evaluation"] <= 1e-9, case


@pytest.mark.parametrize("ranks, meshes", [(2, 3), (4, 3)])
def test_batch_norm_without_affine_is_that_of_the_whole_batch(ranks, meshes):
    norms = [case["norm"] for case in cases(ranks) if "norm" in case]
    assert len(norms) == meshes and max(norms) <= 1e-9


@pytest.mark.parametrize("ranks, meshes", [(2, 2), (4, 3)])
def test_backward_exchange_is_the_adjoint(ranks, meshes):
    adjoints = [case for case in cases(ranks) if "adjoint" in case]
    assert len(adjoints) == 3 * meshes
    for case in adjoints:
        assert case["adjoint"] <= 1e-12, case


def image(size=(16, 16)) -> SpatialTensor:
    return SpatialTensor(torch.rand(1, 3, *size), size, Mesh())


def test_a_spatial_tensor_stands_for_the_whole_image():
    with pytest.raises(ValueError, match="owns"):
        SpatialTensor(torch.rand(1, 3, 8, 8), (16, 16), Mesh())
    assert image((16, 12)).shape == (1, 3, 16, 12)
    with pytest.raises(ValueError, match="needs 4 ranks, but 1"):
        Mesh(rows=4)


def test_a_checkpoint_of_torchvision_loads_by_name():
    # The names and shapes of torchvision's resnet18, as its published checkpoints have them.
    shapes = {name: tuple(value.shape) for name, value in resnet18(1000).state_dict().items()}
    assert len(shapes) == 122
    assert sum(p.numel() for p in resnet18(1000).parameters()) == 11_689_512
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert shapes["layer2.0.downsample.1.running_var"] == (128,)
    assert shapes["layer4.1.bn2.num_batches_tracked"] == ()
    assert shapes["fc.bias"] == (1000,)


def test_a_wrong_number_of_ranks_is_refused(tmp_path):
    arguments = ["train", "--folds", "f", "--pyramids", "p", "--fold", 0, "--mpp", 1, "--canvas", 8, "--output", "m"]
    done = gigapipe(*arguments, "--mesh", 1, 2, 2, ranks=2, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stdout.count("mesh 1 × 2 × 2 needs 4 ranks, but MPI knows of 2") == 1
    assert "Traceback" not in done.stdout
