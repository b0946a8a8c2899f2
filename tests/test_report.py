"""The report: its answer, its figures, and the page as a browser shows it."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from launching import ROOT, gigapipe
from PIL import Image
from sklearn.metrics import roc_auc_score

from gigapipe.evaluation import figures
from gigapipe.evaluation.recommendation import recommend
from gigapipe.evaluation.report import all_figures, memory_table, report, revision
from gigapipe.evaluation.report_tables import blocks, runtimes

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NASTY = "<script>fail('x')</script>&amp;"


def comparison(**columns) -> pd.DataFrame:
    """Three resolutions, coarsest first."""
    table = {
        "mpp": [48.0, 8.0, 2.0],
        "canvas": [9, 52, 208],
        "mesh": ["1 × 1 × 1", "1 × 1 × 1", "1 × 2 × 1"],
        "ranks": [1, 1, 2],
        "slides": 63,
        "patients": 40,
        "folds": 2,
        "auc": [0.48531, 0.80857, 0.96429],
        "auc_low": [0.338, 0.646, 0.914],
        "auc_high": [0.623, 0.925, 1.0],
        "seconds_per_step": [0.12, 0.15, 0.6],
        "peak_memory_per_rank_mb": [672.7, 685.7, 734.1],
    }
    return pd.DataFrame(table | columns)


def test_the_answer_is_the_coarsest_that_is_not_told_from_the_best():
    overlapping = recommend(comparison())
    assert overlapping.mpp == 8 and "8 µm per pixel" in overlapping.headline
    assert "0.964 (0.914–1.000) at 2 µm per pixel (their intervals overlap), at 1/8 of the cost" in overlapping.reason
    apart = recommend(comparison(auc_high=[0.623, 0.9, 1.0]))
    assert apart.mpp == 2
    assert "8 µm per pixel does not reach it: 0.809 (0.646–0.900), their intervals are apart, at 1/8" in apart.reason


def test_a_paired_test_outweighs_intervals():
    tested = comparison(coarser=[np.nan, 48, 8], p=[np.nan, 1e-3, 0.03])
    assert recommend(tested).mpp == 2 and "p\xa0=\xa00.030" in recommend(tested).reason
    assert recommend(tested.assign(p=[np.nan, 1e-3, 0.2])).mpp == 8
    against_best = comparison(p_best=[1e-9, 0.01, np.nan])
    assert recommend(against_best).mpp == 2
    assert recommend(comparison(p_best=[0.06, 0.06, np.nan])).mpp == 48


def test_the_answer_may_be_that_there_is_none():
    assert recommend(comparison(auc_low=0.4)).mpp is None
    assert recommend(comparison(auc=np.nan)).mpp is None
    finest_is_worse = recommend(comparison(auc=[0.9, 0.7, 0.7], auc_low=[0.8, 0.6, 0.6], auc_high=[0.95, 0.78, 0.78]))
    assert finest_is_worse.mpp == 48 and "no resolution is coarser" in finest_is_worse.reason


def some_predictions(rng) -> pd.DataFrame:
    """Of 3 resolutions and 2 folds, each of which chose the other's epoch; the finer, the better."""
    slides = [(i, i % 2, i // 2 % 2, fold) for i in range(40) for fold in range(2)]
    return pd.DataFrame(
        {
            "slide": f"s{i:02d}",
            "patient": f"p{i:02d}",
            "site": "a",
            "label": ("acinar", "solid")[positive],
            "part": "test" if fold == held_out else "validation",
            "fold": fold,
            "mpp": mpp,
            "network": fold,
            "score": 1 / (1 + np.exp(-gain * (2 * positive - 1) - rng.normal())),
        }
        for mpp, gain in ((48.0, 0), (8.0, 1), (2.0, 3))
        for i, positive, held_out, fold in slides
    )


def test_the_matrix_of_three_labels_is_by_the_largest_probability(tmp_path):
    rng = np.random.default_rng(0)
    labels, scores = np.repeat(["a", "b", "c"], 20), rng.dirichlet(np.ones(3), 60)
    table = pd.DataFrame(scores, columns=["score_a", "score_b", "score_c"])
    table = table.assign(label=labels, part="test", mpp=2.0, network=0, seed=0, fold=0)
    figure, caption = all_figures(comparison(), table, [], tmp_path)["confusion"]
    expected = pd.crosstab(labels, scores.argmax(axis=1)).to_numpy().ravel()
    assert [int(text.get_text()) for text in figure.axes[0].texts] == expected.tolist()
    assert "by the largest probability" in caption and "threshold" not in caption


def test_slides_that_cannot_be_decided_are_counted(tmp_path):
    table = some_predictions(np.random.default_rng(0)).assign(seed=0)
    of_one_class = (table["part"] == "validation") & (table["fold"] == 0) & (table["label"] == "acinar")
    figure, caption = all_figures(comparison(), table[~of_one_class], [], tmp_path)["confusion"]
    assert "Left out: 60 of networks without a threshold." in caption  # 20 at each of 3 resolutions
    assert sum(int(text.get_text()) for axes in figure.axes for text in axes.texts) == 60
    assert "confusion" not in all_figures(comparison(), table[table["part"] == "test"], [], tmp_path)


def test_a_roc_curve_of_three_labels_is_the_mean_of_each_against_the_rest():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 20)
    scores = {f"score_{name}": (labels == name) + rng.normal(size=60) for name in "abc"}
    table = pd.DataFrame({"label": labels, "mpp": 2.0, "network": 0, **scores})
    thick = max(figures.roc(table).axes[0].lines, key=lambda line: line.get_linewidth())
    areas = [roc_auc_score(labels == name, table[f"score_{name}"]) for name in "abc"]
    assert abs(np.trapezoid(thick.get_ydata(), thick.get_xdata()) - np.mean(areas)) < 0.01


def test_a_roc_curve_needs_slides_of_two_labels_only():
    table = pd.DataFrame({"label": ["a", "b", "b"], "mpp": 2.0, "network": 0})
    figure = figures.roc(table.assign(score_a=[0.8, 0.1, 0.2], score_b=[0.1, 0.8, 0.7], score_c=0.1))
    assert len(figure.axes[0].lines) == 3


@pytest.mark.parametrize("panels", [1, 4])
def test_every_panel_has_its_scale(panels):
    table = pd.concat(some_predictions(np.random.default_rng(0)).assign(mpp=2.0**i) for i in range(panels))
    figure = figures.roc(table)
    figure.canvas.draw()
    assert len(figure.axes) == panels
    assert all([text.get_text() for text in axes.get_xticklabels()] == ["0.0", "0.5", "1.0"] for axes in figure.axes)
    assert all(text.get_visible() for axes in figure.axes for text in axes.get_xticklabels())


def test_the_undivided_memory_is_that_of_the_published_width_only():
    def drawn(**settings):
        training = {"settings": {"network": "resnet18", **settings}}
        return set(memory_table(comparison(), [training])["what"])

    assert drawn() == drawn(width=64) == {"measured", "resnet18, undivided"}
    assert drawn(width=16) == {"measured"}


@pytest.fixture
def results(tmp_path):
    """A folder of results as a run leaves it, with names in it that are no HTML."""
    folder = tmp_path / "results"
    rng = np.random.default_rng(0)
    for (mpp, fold), rows in some_predictions(rng).groupby(["mpp", "fold"]):
        network = folder / f"{mpp:g}um" / f"fold-{fold}"
        network.mkdir(parents=True)
        rows.drop(columns="network").to_csv(network / "predictions.tsv", sep="\t", index=False)
        losses = [{"epoch": e, "training_loss": 1 / e, "validation_loss": 1.2 / e} for e in (1, 2, 3)]
        settings = {"mpp": mpp, "network": "resnet18"}
        record = {"settings": settings, "best_epoch": 3, "history": losses}
        (network / "training.json").write_text(json.dumps(record))
    comparison().to_csv(folder / "comparison.tsv", sep="\t", index=False)
    (folder / "folds.md").write_text(
        f"63 slides of 40 patients\n\n**Warning: the site {NASTY} tells.** So be careful.\n\n"
        f"| site | acinar |\n| --- | --- |\n| a\\|b {NASTY} | 7 |\n"
    )
    (folder / "config.yaml").write_text(f"task: classes # {NASTY}\n")
    maps = folder / "2um/maps"
    maps.mkdir()
    shutil.copytree(folder / "2um", folder / "lung/2um")  # another run's
    (folder / "lung/2um/fold-0/training.json").write_text("not looked at")
    row = {"slide": "s01", "label": NASTY, "mpp": 2.0, "probability of solid": 0.98765, "chosen": "highest"}
    pd.DataFrame([row]).to_csv(maps / "maps.tsv", sep="\t", index=False)
    Image.fromarray(np.full((40, 80, 3), 200, np.uint8)).save(maps / "s01.png")
    benchmarks = folder / "benchmarks/train/2um"
    benchmarks.mkdir(parents=True)
    for fold in range(2):
        (benchmarks / f"fold-{fold}.tsv").write_text("s\th:m:s\tmax_rss\n100.5\t0:01:40\t512.25\n")
    (folder / "benchmarks/folds.tsv").write_text("s\th:m:s\tmax_rss\n0.5\t0:00:00\t-\n")
    return folder


@pytest.mark.slow
def test_every_figure_is_drawn_as_png_and_svg(results, tmp_path):
    modes = [
        {"mode": mode, "source": source, "ranks": n, "efficiency": 1 / n**0.1, "seconds": 1.0}
        for mode in ("strong", "weak")
        for source, most in (("measured", 3), ("model", 12))
        for n in 2 ** np.arange(most)
    ]
    pd.DataFrame(modes).to_csv(results / "scaling.tsv", sep="\t", index=False)
    report(results, None, results / "benchmarks", tmp_path / "figures")
    names = {"auc-resolution", "auc-cost", "roc", "confusion", "training", "memory", "scaling"}
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    for name in names:
        picture = np.asarray(Image.open(tmp_path / "figures" / f"{name}.png").convert("L"))
        assert (picture < 128).mean() > 0.002  # there is ink
    again = tmp_path / "again"
    report(results, None, results / "benchmarks", again)
    assert all((again / f"{n}.svg").read_bytes() == (tmp_path / "figures" / f"{n}.svg").read_bytes() for n in names)


def test_figures_show_the_numbers_of_their_table():
    table = comparison()
    axes = figures.auc_against_resolution(table).axes[0]
    assert axes.lines[0].get_xydata() == pytest.approx(table[["mpp", "auc"]].to_numpy())
    assert (
        figures.auc_against_resolution(table.assign(method=["whole", "whole", "spatial"])).axes[0].get_legend() is None
    )
    more = pd.concat([table, table.tail(1)], ignore_index=True)
    more = more.assign(split="site", method=["whole", "whole", "whole", "spatial"])
    for column in ("auc", "auc_low", "auc_high"):
        more[f"patient_split_{column}"] = more[column] / 2
    legend = figures.auc_against_resolution(more).axes[0].get_legend().get_texts()
    expected = [f"{arm}, folds by {split}" for arm in ("whole", "spatial") for split in ("site", "patient")]
    assert [text.get_text() for text in legend] == expected
    axes = figures.auc_against_cost(table).axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx([0.12, 0.15, 1.2])

    predictions = some_predictions(np.random.default_rng(0))
    panels = figures.roc(predictions).axes
    assert [panel.get_title() for panel in panels] == ["48 µm/px", "8 µm/px", "2 µm/px"]
    from sklearn.metrics import roc_auc_score

    for panel, (_, rows) in zip(panels, sorted(predictions.groupby("mpp"), reverse=True), strict=True):
        expected = np.mean([roc_auc_score(n["label"] == "solid", n["score"]) for _, n in rows.groupby("network")])
        mean = panel.lines[2].get_xydata()  # after two thin ones
        assert np.trapezoid(mean[:, 1], mean[:, 0]) == pytest.approx(expected, abs=0.01)

    decided = pd.DataFrame({"mpp": 2.0, "label": list("aaab"), "decided": list("aabb")})
    assert [text.get_text() for text in figures.confusion(decided).axes[0].texts] == ["2", "1", "0", "1"]

    scaling = pd.DataFrame(
        {
            "mode": "strong",
            "source": ["measured", "model", "model"],
            "ranks": [2, 2, 64],
            "efficiency": [0.9, 0.92, 0.5],
        }
    ).assign(seconds=1.0)
    drawn = {line.get_label(): line for line in figures.scaling(scaling).axes[0].lines}
    assert drawn["measured"].get_linestyle() == "None" and drawn["model"].get_linestyle() == "--"
    assert drawn["model"].get_xydata().tolist() == [[2, 0.92], [64, 0.5]]


def test_the_page_escapes_all_that_comes_from_files(results):
    page = report(results, results / "config.yaml", results / "benchmarks")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4  # warning, site, label and config
    for number in ("0.485 (0.338–0.623)", "0.809 (0.646–0.925)", "0.964 (0.914–1.000)", "0.988"):
        assert number in page
    assert not re.search(r"""(src|href)="(?!data:|#)""", page)  # nothing is fetched


def test_what_is_missing_is_left_out(results, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(results / "comparison.tsv", tmp_path / "bare")
    page = report(tmp_path / "bare", None, tmp_path / "bare/benchmarks")
    assert "0.964 (0.914–1.000)" in page and 'id="roc"' not in page and "Maps" not in page and "Cohort" not in page
    done = gigapipe("report", tmp_path, "--output", tmp_path / "page.html", check=False)
    assert done.returncode == 1 and "comparison.tsv cannot be read" in done.stdout and "Traceback" not in done.stdout
    assert not (tmp_path / "page.html").exists()


def test_columns_that_the_comparison_may_have_are_shown(results):
    more = comparison(
        split="site", seeds=3, patient_split_auc=[0.5, 0.81, 0.95], patient_split_auc_low=0.4,
        patient_split_auc_high=1.0, coarser=[np.nan, 48, 8], delta=[np.nan, 0.3, 0.16],
        p=[np.nan, 1e-5, 0.03], brier=0.125, joules_per_step=np.nan,
    )  # fmt: skip
    more.to_csv(results / "comparison.tsv", sep="\t", index=False)
    page = report(results, None, results / "benchmarks")
    for text in (
        "folds by site",
        "folds by patient",
        "0.950 (0.400–1.000)",
        "+0.300 (p &lt; 0.001)",
        "0.125",
        "unknown",
        "3 × 2",
    ):
        assert text in page


def test_runtimes_are_summed_by_rule(results):
    found = runtimes(results / "benchmarks")
    assert found.rows == [["train", "2", "3.4 min", "1.7 min", "512"], ["folds", "1", "0.5 s", "0.5 s", "unknown"]]


def test_markdown_of_folds_becomes_paragraphs_and_tables(results):
    first, warning, table = blocks((results / "folds.md").read_text())
    assert first == {"strong": "", "text": "63 slides of 40 patients"}
    assert warning["strong"].startswith("Warning") and warning["text"] == " So be careful."
    assert table["table"].headings == ["site", "acinar"] and table["table"].rows == [[f"a|b {NASTY}", "7"]]


def test_the_revision_is_that_of_the_source():
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("the source is in no git repository")
    assert revision().removesuffix("-dirty") == git.stdout.strip()


@pytest.fixture
def browse(tmp_path):
    """A function that opens a page in a headless browser: its text as it stands there, and what the console says."""

    def installed() -> str | None:
        return next(filter(None, map(shutil.which, BROWSERS)), None)

    if not installed() and os.geteuid() == 0 and shutil.which("apt-get"):
        for step in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", *step], env=environment, capture_output=True)
    if not (browser := installed()):
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, so the page is not opened")

    def opened(page, *options) -> tuple[str, list[str]]:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--enable-logging=stderr", "--virtual-time-budget=5000", *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return opened


def test_a_browser_shows_the_page_without_an_error(results, tmp_path, browse):
    gigapipe("report", results, "--config", results / "config.yaml", "--output", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    page, console = browse(tmp_path / "report.html", "--dump-dom")
    assert console == []
    text = re.sub(r"<[^>]+>", " ", page)
    for number in ("0.485 (0.338–0.623)", "0.809 (0.646–0.925)", "0.964 (0.914–1.000)", "Use 8 µm per pixel.", "734"):
        assert number in text
    picture = tmp_path / "page.png"
    browse(tmp_path / "report.html", f"--screenshot={picture}", "--window-size=1366,768")
    first_screen = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert first_screen.shape[:2] == (768, 1366)
    assert (abs(first_screen - [0x5B, 0x2A, 0x86]).sum(axis=2) < 30).sum() > 1000  # the answer and its curve
    # That an error would have been seen:
    (tmp_path / "broken.html").write_text("<script>console.error('broken')</script><img src='nowhere.png'>")
    assert browse(tmp_path / "broken.html", "--dump-dom")[1]


def test_the_page_is_printed(results, tmp_path, browse):
    (tmp_path / "report.html").write_text(report(results, None, results / "benchmarks"))
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 1 < len(re.findall(rb"/Type /Page\b", pdf)) < 12
