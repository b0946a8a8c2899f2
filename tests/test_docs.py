"""The commands that the pages show are run, workflows as dry runs; of those only mentioned the options must exist."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import EXIT_GLOO, ROOT, gigapipe
from projects import fresh_copy, shown_commands, snakemake, with_few_patients

from gigapipe.slides.phantom import cohort, render, write_slide

PAGES = [str(path.relative_to(ROOT)) for folder in ("config", "docs") for path in sorted((ROOT / folder).rglob("*.md"))]
PAGES.append("README.md")
MENTIONED = re.compile(r"(?:`|^)((?:gigapipe|snakemake|python|mpiexec -n 2 python) [^`\n]+)(?:`|$)", re.MULTILINE)
# What these read is not made here; or they take long.
ELSEWHERE = {
    "gigapipe gdc sheet": "test_gdc.py",
    "gigapipe report": "test_workflow.py, with the demo's results",
    "gigapipe map": "test_workflow.py, with the demo's results",
    "gigapipe crate": "test_demo.py, with the demo's results",
    "gigapipe apply": "test_applying.py",
    "gigapipe plan resnet50 22528x22528 --machine summit --ranks 2304 --batch 36 --scaling": "test_planning.py",
}

pytestmark = pytest.mark.slow

COMMANDS = {page: commands for page in PAGES if (commands := shown_commands(page))}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A copy of the project with what the pages' reader has: a config, slides, a model."""
    folder = with_few_patients(fresh_copy(tmp_path_factory.mktemp("place")))
    (folder / "resources/lung").mkdir(parents=True)
    sheet = ["slide,label,patient"]
    for i in range(12):
        sheet.append(f"slide-{i},{'ab'[i % 2]},patient-{i}")
        (folder / f"resources/lung/slide-{i}.svs").touch()
    (folder / "resources/lung/slides.csv").write_text("\n".join(sheet) + "\n")
    (folder / "config/mine.yaml").write_text((folder / "config/lung.yaml").read_text())
    write_slide(folder / "slide.svs", render(cohort(patients=2)[0]))
    (folder / "mine.py").write_text("from gigapipe.models.unet import GigapixelUNet as unet\n")
    return folder


def test_the_pages_show_commands():
    assert COMMANDS.keys() >= {"README.md", "docs/clusters.md", "docs/pyramids.md", "docs/training.md"}


@pytest.mark.parametrize("page", COMMANDS)
def test_a_pages_commands_run_one_after_another(page, place, monkeypatch):
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "abc123")
    for command in COMMANDS[page]:
        if any(command.startswith(start) for start in ELSEWHERE):
            _knows_options(command)
        else:
            _run(command, place)


@functools.cache  # pages repeat one another
def _run(command: str, place: Path) -> None:
    program, *arguments = shlex.split(command)
    if program == "snakemake":
        _, output = snakemake(place, *arguments, *([] if "-n" in arguments else ["-n"]))
        assert "Job stats:" in output
    else:
        print(gigapipe(*arguments, cwd=place, process=arguments[0] == "check").stdout)  # which starts processes itself


@pytest.mark.parametrize("page", PAGES)
def test_what_is_mentioned_is_known(page, place):
    for command in MENTIONED.findall((ROOT / page).read_text().replace("\\\n", " ")):
        if command.startswith("snakemake --cores"):
            _run(command.partition(" #")[0].strip(), place)
        elif "VERB" not in command and not command.startswith("snakemake"):
            _knows_options(command.partition(" #")[0])


def _knows_options(command: str) -> None:
    words = shlex.split(command.replace("…", ""))
    if "python" in words:  # benchmarks take minutes: their source must name what they are told
        known = " ".join(re.findall(r'add_argument\("(\S+)"', (ROOT / words[words.index("python") + 1]).read_text()))
    else:
        known = gigapipe(*(word for word in words[1:3] if word.isalpha()), "--help").stdout
    for word in words:
        assert not word.startswith("--") or re.search(rf"{word}(?![\w-])", known), f"{command}: no {word}"


def test_the_lines_of_the_first_page_decompose_a_network(tmp_path):
    lines = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "lines.py").write_text(
        "import torch\n"
        "from gigapipe.models import RESNETS\n"
        "torch.distributed.init_process_group('gloo')\n"
        "model, criterion = RESNETS['resnet10'](2, width=4), torch.nn.CrossEntropyLoss()\n"
        "my_part, label = torch.rand(1, 3, 512, 1024), torch.tensor([1])\n"
        f"{lines}"
        "print(all(p.grad is not None for p in model.parameters()), rows, columns)\n" + EXIT_GLOO
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "lines.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("True") == 2
