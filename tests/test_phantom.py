"""The instrument itself: the phantom's signals are where its docstring says, and nowhere else."""

import numpy as np
import pytest
from launching import gigapipe
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from gigapipe.errors import InputError
from gigapipe.pyramids.area import AreaMean, Axis
from gigapipe.slides.phantom import CLASSES, MPP, cohort, render, write_slide
from gigapipe.slides.reader import Slide

FINEST, COARSEST = 2, 48  # as in config/config.yaml


def downsample(rgb: np.ndarray, mpp: float) -> np.ndarray:
    axes = [Axis.of(n, mpp / MPP) for n in rgb.shape[:2]]
    mean = AreaMean(*axes, *((0, axis.size) for axis in axes))
    mean.feed(rgb, 0, 0)
    return mean.mean.transpose(1, 2, 0)


def coloured(rgb: np.ndarray) -> np.ndarray:
    """Where there is tissue."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    lightest, darkest = (of(of(red, green), blue) for of in (np.maximum, np.minimum))
    return lightest - darkest > 30


def clumping(rgb: np.ndarray, mpp: float) -> float:
    """Share of the variance of darkness, inside the tissue, at about 20 µm: nuclei clump there unless in a ring."""
    darkness = 255.0 - rgb[..., 0]
    tissue = ndimage.gaussian_filter(coloured(rgb).astype(float), 20 / mpp) > 0.95
    fine, coarse = (ndimage.gaussian_filter(darkness, max(sigma / mpp, 0.5 * sigma / 4.2)) for sigma in (4.2, 6.3))
    return (fine - coarse)[tissue].var() / darkness[tissue].var()


@pytest.fixture(scope="module")
def slides():
    phantoms = cohort(seed=0, patients=40)
    return phantoms, [render(phantom) for phantom in phantoms]


@pytest.mark.slow
def test_the_class_is_there_at_the_finest_resolution_and_gone_at_the_coarsest(slides):
    phantoms, pictures = slides
    labels = [phantom.label == "solid" for phantom in phantoms]
    auc = {
        mpp: roc_auc_score(labels, [clumping(downsample(rgb, mpp), mpp) for rgb in pictures])
        for mpp in (FINEST, COARSEST)
    }
    print(auc)
    assert auc[FINEST] >= 0.95
    assert 0.35 <= auc[COARSEST] <= 0.65


@pytest.mark.slow
def test_colour_says_nothing_of_the_class_unless_confounded(slides):
    phantoms, pictures = slides
    labels = [phantom.label == "acinar" for phantom in phantoms]
    assert 0.35 <= roc_auc_score(labels, colour_oracle(phantoms, hues(pictures), same_site=True)) <= 0.65


def hues(pictures) -> np.ndarray:
    """Of each slide: blue's density in green's."""
    densities = np.array([-np.log10(rgb[coloured(rgb)].mean(axis=0) / 255) for rgb in pictures])
    return densities[:, 2] / densities[:, 1]


def colour_oracle(phantoms, hues, same_site: bool) -> list[float]:
    """How much nearer a slide's hue is to that of a slide of class `acinar` than to one of `solid`.

    It looks at other patients' slides: at all of them, as a random split allows, or only at other sites'.
    """
    scores = []
    for phantom, hue in zip(phantoms, hues, strict=True):
        known = [p.patient != phantom.patient and (same_site or p.site != phantom.site) for p in phantoms]
        distance = abs(hues - hue)
        nearest = [
            min(d for d, k, p in zip(distance, known, phantoms, strict=True) if k and p.label == c) for c in CLASSES
        ]
        scores.append(nearest[1] - nearest[0])
    return scores


@pytest.mark.slow
def test_a_confounded_site_fools_a_random_split_and_not_a_site_preserved_one():
    phantoms = cohort(seed=1, patients=24, confounder=1.0)
    assert all(len({p.label for p in phantoms if p.site == site}) == 1 for site in {p.site for p in phantoms})
    found = hues(map(render, phantoms))
    labels = [phantom.label == "acinar" for phantom in phantoms]
    assert roc_auc_score(labels, colour_oracle(phantoms, found, same_site=True)) >= 0.95
    assert roc_auc_score(labels, colour_oracle(phantoms, found, same_site=False)) <= 0.5


def test_a_cohort_is_balanced_and_a_pure_function_of_its_seed():
    phantoms = cohort(seed=3, patients=32, sites=4)
    assert phantoms == cohort(seed=3, patients=32, sites=4) != cohort(seed=4, patients=32, sites=4)
    patients = {p.patient: p for p in phantoms}
    assert len(patients) == 32 < len(phantoms) <= 64
    for site in range(4):
        labels = [p.label for p in patients.values() if p.site == f"site-{site}"]
        assert labels.count("acinar") == labels.count("solid") == 4
    with pytest.raises(InputError, match="two sites"):
        cohort(sites=1, confounder=0.5)


def test_a_phantom_is_an_aperio_slide_that_says_its_resolution(tmp_path):
    phantom = cohort(seed=0, patients=6)[0]
    rgb = render(phantom)
    assert (rgb == render(phantom)).all()
    write_slide(tmp_path / "p.svs", rgb)
    with Slide(tmp_path / "p.svs") as slide:
        assert slide.vendor == "aperio"
        assert slide.mpp == (MPP, MPP)
        assert slide.shape == rgb.shape[:2]
        assert slide._file.level_count == 3
        difference = slide.read(0, 0, *slide.shape).astype(float) - rgb
    assert abs(difference).mean() < 5  # JPEG


def test_the_verb_writes_a_cohort_or_one_file_of_it(tmp_path):
    gigapipe("phantom", tmp_path, "--patients", 6, "--only", "slides.tsv")
    names = [line.split("\t")[0] for line in (tmp_path / "slides.tsv").read_text().splitlines()[1:]]
    assert [p.name for p in tmp_path.iterdir()] == ["slides.tsv"]
    gigapipe("phantom", tmp_path, "--patients", 6, "--only", f"{names[1]}.svs")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{names[1]}.svs", "slides.tsv"]
    refused = gigapipe("phantom", tmp_path, "--patients", 6, "--only", "../x.svs", check=False)
    assert refused.returncode == 1 and refused.stdout.startswith("gigapipe: ../x.svs")
