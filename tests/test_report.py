"""The report: its answer, its figures, and the page as a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html import escape

import numpy as np
import pandas as pd
import pytest
from launching import ROOT, gigapipe
from PIL import Image
from requirements import missing
from sklearn.metrics import roc_auc_score

from gigapipe.evaluation import figures
from gigapipe.evaluation.mistakes import mistakes
from gigapipe.evaluation.predictions import read_predictions
from gigapipe.evaluation.report import all_figures, memory_table, report
from gigapipe.evaluation.report_pictures import WRONG, Place
from gigapipe.evaluation.report_tables import blocks, runtimes
from gigapipe.evaluation.software import revision
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.phantom import cohort, render, write_slide

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
        "auc_low_of_all": [0.32, 0.63, 0.9],
        "to_best": [-0.47898, -0.15572, 0.15572],
        "to_best_low": [-0.62, -0.28, 0.03],
        "to_best_high": [-0.33, -0.03, 0.28],
        "rival": [2.0, 2.0, 8.0],
        "margin": 0.02,
        "seconds_per_step": [0.12, 0.15, 0.6],
        "peak_memory_per_rank_mb": [672.7, 685.7, 734.1],
    }
    return pd.DataFrame(table | columns)


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
    assert "Not shown: 60 slides of networks without a threshold." in caption  # 20 at each of 3 resolutions
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
def test_the_first_screen_counts_slides_without_tissue_and_doubtful_ones(results):
    before = report(results, None, results / "benchmarks")
    rows = [("a", "whole", "fine"), ("b", "whole", "doubtful"), ("c", "slide c: no tissue was found", "none")]
    rows += [("d", f"slide d: {NASTY}", None)]
    pd.DataFrame(rows, columns=["slide", "fate", "verdict"]).to_csv(results / "slides.tsv", sep="\t", index=False)
    page = report(results, None, results / "benchmarks")
    line = "4 slides: 1 with tissue, 1 with doubtful tissue (b), 1 left out without tissue (c), 1 left out for another"
    assert line not in before and 0 < page.index(line) < page.index('<section id="table">')
    pd.DataFrame(rows[:1], columns=["slide", "fate", "x"]).to_csv(results / "slides.tsv", sep="\t", index=False)
    assert "1 slide: 1 with tissue." in report(results, None, results / "benchmarks")


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
    assert not figures.auc_against_resolution(table.assign(method=["whole", "whole", "spatial"])).legends
    more = pd.concat([table, table.tail(1)], ignore_index=True)
    more = more.assign(split="site", method=["whole", "whole", "whole", "spatial"])
    for column in ("auc", "auc_low", "auc_high"):
        more[f"patient_split_{column}"] = more[column] / 2
    (legend,) = figures.auc_against_resolution(more).legends
    expected = [f"{arm}, folds by {split}" for arm in ("whole", "spatial") for split in ("site", "patient")]
    assert [text.get_text() for text in legend.get_texts()] == expected
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
    figures.write(figures.confusion(decided.replace("a", "$a_$")), io.BytesIO(), "svg")  # no formula

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


def test_misclassified_slides_have_pictures_scores_and_links_to_their_stores(results, tmp_path):
    wrong = mistakes(read_predictions(sorted((results / "8um").glob("fold-*/predictions.tsv")))).wrong
    assert len(wrong) > WRONG
    (slide, said), (other, _) = wrong[:2]
    write_slide(tmp_path / "slide.svs", render(cohort(patients=2)[0]))
    build_pyramid(tmp_path / "slide.svs", results / "pyramids" / slide, [8.0])
    rows = [(slide, "whole", "doubtful", "it is faint"), (other, f"slide {other}: {NASTY}", None, None)]
    table = pd.DataFrame(rows, columns=["slide", "fate", "verdict", "why"])
    table.to_csv(results / "slides.tsv", sep="\t", index=False)

    page = report(results, None, results / "benchmarks")
    assert not re.search(r"""src="(?!data:)|href="(?!data:|#|pyramids/)""", page)
    of_mistakes, cohort_of = page.split('<section id="mistakes">')[1].split('<section id="cohort">')
    assert f"8 µm per pixel: {len(wrong)} of 40 slides" in of_mistakes and f"<b>{slide}</b> {said}" in of_mistakes
    assert "2 µm per pixel: 0 of 40 slides" in of_mistakes and of_mistakes.count("the first 12 are shown") == 2
    assert of_mistakes.index("2 µm") < of_mistakes.index("8 µm") < of_mistakes.index("48 µm")  # 2 is recommended
    (link,) = set(re.findall(r'href="([^"#]+)">pyramid', of_mistakes))
    assert (results / link).is_dir() and link == f"pyramids/{slide}/image.zarr"
    (picture,) = set(re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="Slide', of_mistakes))
    assert max(Image.open(io.BytesIO(base64.b64decode(picture))).size) > 150
    assert "it is faint" in cohort_of and "left out" in cohort_of and picture in cohort_of
    assert Place(results, tmp_path / "pages/of").slide(slide)["store"] == f"../../results/{link}"
    shutil.rmtree(results / link)  # the page was sent without them
    lacking = Place(results, results).slide(slide)
    assert lacking["source"] == lacking["store"] == "" and lacking["name"] == slide


def test_what_could_not_be_told_is_nan_nowhere(results):
    lacking = dict.fromkeys(["auc_low", "auc_high", "auc_low_of_all", "seconds_per_step", "joules_per_step"], np.nan)
    comparison(**lacking, auc=[np.nan, 0.8, 0.9]).to_csv(results / "comparison.tsv", sep="\t", index=False)
    (results / "benchmarks/folds.tsv").write_text("s\th:m:s\tmax_rss\n-\t-\t-\n")
    maps = pd.read_csv(results / "2um/maps/maps.tsv", sep="\t").assign(label="NA")
    maps.to_csv(results / "2um/maps/maps.tsv", sep="\t", index=False)
    page = report(results, None, results / "benchmarks")
    drawn = "".join(base64.b64decode(svg).decode() for svg in re.findall(r'"data:image/svg.xml;base64,([^"]*)"', page))
    text = re.sub(r'"data:[^"]*"', "", page)
    assert not re.search(r"\b(nan|NaN|None|NaT)\b", text) and "s01 is NA" in text
    assert "nan" not in re.findall(r"[a-z]+", drawn.lower()) and "no interval" in drawn


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
    assert found.rows == [["train", "2", "3.4 min", "1.7 min", "512"], ["folds", "1", "0.5 s", "0.5 s", "not measured"]]


def test_markdown_of_folds_becomes_paragraphs_and_tables(results):
    first, warning, table = blocks((results / "folds.md").read_text())
    assert first == {"strong": "", "text": "63 slides of 40 patients"}
    assert warning["strong"].startswith("Warning") and warning["text"] == " So be careful."
    assert table["table"].headings == ["site", "acinar"] and table["table"].rows == [[f"a|b {NASTY}", "7"]]


def test_the_revision_is_that_of_the_source():
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        missing("the source is in no git repository")
    assert revision().removesuffix("-dirty") == git.stdout.strip()


@pytest.fixture
def browse(tmp_path, browser):
    """A function that opens a page in a headless browser: its text as it stands there, and what the console says."""

    def opened(page, *options) -> tuple[str, list[str]]:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--enable-logging=stderr", "--virtual-time-budget=5000", *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return opened


@pytest.mark.slow
def test_a_browser_shows_the_page_without_an_error(results, tmp_path, browse):
    gigapipe("report", results, "--config", results / "config.yaml", "--output", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    page, console = browse(tmp_path / "report.html", "--dump-dom")
    assert console == []
    text = re.sub(r"<[^>]+>", " ", page)
    for number in ("0.485 (0.338–0.623)", "0.809 (0.646–0.925)", "0.964 (0.914–1.000)", "Use 2 µm per pixel.", "734"):
        assert number in text
    picture = tmp_path / "page.png"
    browse(tmp_path / "report.html", f"--screenshot={picture}", "--window-size=1366,768")
    first_screen = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert first_screen.shape[:2] == (768, 1366)
    assert (abs(first_screen - [0x5B, 0x2A, 0x86]).sum(axis=2) < 30).sum() > 1000  # the answer and its curve
    # In a frame as wide as a phone the page itself is not wider: what is wide moves in its place.
    framed = escape((tmp_path / "report.html").read_text())
    measure = "document.title = 'wide ' + phone.contentDocument.documentElement.scrollWidth"
    frame = f'<iframe id="phone" style="width:390px;height:844px" onload="{measure}" srcdoc="{framed}"></iframe>'
    (tmp_path / "phone.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}")
    (wide,) = re.findall(r"<title>wide (\d+)</title>", browse(tmp_path / "phone.html", "--dump-dom")[0])
    assert 300 < int(wide) <= 390
    # That an error would have been seen:
    (tmp_path / "broken.html").write_text("<script>console.error('broken')</script><img src='nowhere.png'>")
    assert browse(tmp_path / "broken.html", "--dump-dom")[1]


@pytest.mark.slow
def test_the_page_is_printed(results, tmp_path, browse):
    (tmp_path / "report.html").write_text(report(results, None, results / "benchmarks"))
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer")
    pdf = (tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 1 < len(re.findall(rb"/Type /Page\b", pdf)) < 12
