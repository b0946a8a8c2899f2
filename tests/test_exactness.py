"""The promise: the same gradients on any number of ranks as on one."""

import pandas as pd
import pytest
import torch
from launching import gigapipe
from ranks.planning import CASES as PLANNED

from gigapipe.models import resnet18
from gigapipe.planning.cost import step_cost
from gigapipe.spatial import Mesh, SpatialTensor
from gigapipe.spatial.window import Window

MESHES = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 1), (1, 2, 2), (1, 4, 1), (2, 1, 2)]  # data, rows, columns


@pytest.mark.check
def test_resnet18_trains_on_two_ranks_as_if_undivided(ranks):
    trained_as_if_undivided(ranks, (40, 33), (1, 2, 1), 64)


# Even, odd, and so small that some ranks own nothing of the last layers; as wide as it was published, and on every mesh
# narrower: what is divided is rows and columns.
@pytest.mark.parametrize(
    "size, mesh, width",
    [((96, 96), mesh, 64) for mesh in (MESHES[0], MESHES[1], MESHES[4])]
    + [(size, mesh, 16) for size in ((101, 77), (40, 33)) for mesh in MESHES],
)
def test_resnet18_trains_as_if_undivided(ranks, size, mesh, width):
    trained_as_if_undivided(ranks, size, mesh, width)


def trained_as_if_undivided(ranks, size, mesh, width) -> None:
    found = ranks("exactness.training", size, width, mesh=mesh)
    errors = found[0][1]
    print(errors)
    assert max(errors["loss"], errors["gradients"]) <= 1e-10, errors
    assert max(errors["weights"], errors["statistics"], errors["evaluation"]) <= 1e-9, errors
    assert len({checksum for checksum, _ in found}) == 1, "all ranks have the same weights, bit by bit"


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_batch_norm_without_affine_is_that_of_the_whole_batch(ranks, mesh):
    assert max(ranks("exactness.normalise_without_affine", mesh=mesh)) <= 1e-9


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh[1:] != (1, 1)])
@pytest.mark.parametrize("window", [Window(7, 2, (3, 3)), Window(3, 2, (1, 1)), Window(3, 1, (20, 0), dilation=9)])
def test_backward_exchange_is_the_adjoint(ranks, window, mesh):
    assert max(ranks("exactness.adjoint_of_halo", (37, 29), window, mesh=mesh)) <= 1e-12


@pytest.mark.parametrize("mesh", [(1, 1, 2), (2, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("network", ["ResNet-18, frozen", "ResNet-18, BatchNorm", "U-Net"])
def test_ranks_that_stream_their_shards_are_exact(ranks, network, mesh):
    for error, worst in ranks("streaming.network", network, mesh=mesh):
        assert error <= 1e-10, worst


def test_a_rank_is_planned_to_copy_what_it_adds_halos_to(ranks):
    image = 8 * 512 * 512 * 4 / 2  # bytes of one rank's half
    assert ranks("streaming.planned", mesh=(1, 2, 1)) == [(2 + 0.25) * image] * 2


def test_a_rank_is_planned_to_copy_what_a_segment_begins_with(ranks):
    image = 8 * 256 * 128 * 4
    for taken in ranks("streaming.planned_of_kept", mesh=(1, 2, 1)):
        assert taken == pytest.approx(2 * image)


@pytest.mark.parametrize("mesh, tile", [((1, 2, 2), None), ((1, 2, 1), 40)])
def test_the_loss_of_several_classes_is_exact_on_ranks(ranks, mesh, tile):
    for errors in ranks("streaming.loss_of_classes", tile, mesh=mesh):
        assert max(errors) <= 1e-10, errors


@pytest.mark.parametrize("case", PLANNED)
def test_predicted_bytes_are_those_that_each_rank_sends(ranks, case):
    make, shape, mesh, precision = PLANNED[case]
    predicted = [step_cost(make, shape, mesh, rank, getattr(torch, precision)).sent for rank in range(4)]
    assert predicted == ranks("planning.sent", case, mesh=mesh)


def test_ranks_read_the_rectangles_of_one_canvas_in_every_look(ranks, small_cohort):
    slide, label = pd.read_csv(small_cohort / "slides.tsv", sep="\t").loc[0, ["slide", "label"]]
    for found in ranks("canvases.differences", str(small_cohort / "pyramids"), slide, label, mesh=(1, 2, 2)):
        symmetries, differences, by_tiles = zip(*found, strict=True)
        assert symmetries == (*range(8), 6, 1)
        assert max(differences) <= 1e-6 and max(by_tiles) <= 1e-5


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


@pytest.mark.slow
def test_a_wrong_number_of_ranks_is_refused(tmp_path):
    arguments = ["train", "--folds", "f", "--pyramids", "p", "--fold", 0, "--mpp", 1, "--canvas", 8, "--output", "m"]
    done = gigapipe(*arguments, "--mesh", 1, 2, 2, ranks=2, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stdout.count("mesh 1 × 2 × 2 needs 4 ranks, but MPI knows of 2") == 1
    assert "Traceback" not in done.stdout
