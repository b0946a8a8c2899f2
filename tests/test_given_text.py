"""Text of configs, sheets, profiles and archives: unharmed where a verb receives it, or refused in a line before."""

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from launching import ROOT, gigapipe
from projects import snakemake

from gigapipe.cli import parser
from gigapipe.configuration import Configuration
from gigapipe.configuration.messages import group_in
from gigapipe.configuration.options import Options
from gigapipe.configuration.tasks import TASKS
from gigapipe.errors import InputError
from gigapipe.evaluation.folds import read_folds
from gigapipe.given_text import fault_of
from gigapipe.slides.sheet import read_sheet, write_sheet
from gigapipe.slides.written_tables import read_written, write_table

HOSTILE = [
    "$(touch HARM)", "`touch HARM`", "a'b", 'a"b', "a & b", "a; touch HARM", "a | tee HARM", "a > HARM", "{slide}",
    "{a b}", "<results>", "-dash", "--output", "=1+1", "é ß 名", "*", "a\nb", "a\rb", "a\x00b", "a\x1b[31mb",
    "\u2028",
]  # fmt: skip
# All of it that a file's name may hold and Snakemake takes as it is, in one; {} is for what tells keys apart.
MIXED = "-{}$(touch HARM)'\"`touch HARM`&|;{{a b}}<a b>=~*?é #"


def leaves(group: type[Options], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each key that holds a value, and its type."""
    for name, field in group.model_fields.items():
        inner = group_in(field.annotation)
        yield from leaves(inner, (*at, name)) if inner else [((*at, name), str(field.annotation))]


KINDS = dict(leaves(Configuration))


def config_with(at: tuple[str, ...], value: Any) -> dict:
    """A config in which one key has a value, and beside it what it needs."""
    needed: dict[str, Any] = {"cohort": {"projects": ["A"]}, "resolutions": {"mpp": 8}, "methods": {"name": "a"}}
    inner = value
    for name in reversed(at):
        inner = {name: inner}
    group = at[0]
    if group in needed:
        both = needed[group] | inner[group]
        inner = {group: [both] if group in ("resolutions", "methods") else both}
    if at[:2] == ("cohort", "manifests"):
        inner["cohort"].pop("projects")
    return {"slides": "s.tsv"} | inner


def values_with(text: str, kind: str) -> list[Any]:
    """A text, and lists and mappings that hold it, if a key of that type takes such."""
    return [text, *([[text]] if "list[" in kind else []), *([{"a": text}, {text: "a"}] if "dict[" in kind else [])]


def texts_of(values: Any) -> Iterator[str]:
    """Each text in a value, or in what a verb's parser made of its arguments."""
    if isinstance(values, str | Path):
        yield str(values)
    elif isinstance(values, dict):
        yield from texts_of([*values.keys(), *values.values()])
    elif isinstance(values, list | tuple):
        for one in values:
            yield from texts_of(one)


def value_at(config: Configuration, at: tuple[str, ...]) -> Any:
    found: Any = config
    for name in at:
        found = getattr(found[0] if isinstance(found, list) else found, name)
    return found


def taken(at: tuple[str, ...], text: str) -> list[Any]:
    """The values with that text that a key allows; all others must be refused in one line."""
    found: list[Any] = []
    for value in values_with(text, KINDS[at]):
        try:
            config = Configuration.of(config_with(at, value), "config: ")
        except InputError as error:
            assert str(error).startswith("config: ") and len(str(error).splitlines()) == 1, (at, value, str(error))
            assert fault_of(str(error)) is None, (at, value, str(error))
        else:
            assert value_at(config, at) == value, (at, value)
            found.append(value)
    return found


@pytest.mark.parametrize("at", KINDS, ids=".".join)
def test_a_text_that_a_key_allows_stays_what_it_is(at):
    for text in HOSTILE:
        allowed = taken(at, text)
        assert not (allowed and fault_of(text)), (at, allowed)


# Keys that hold any text, each with a value that is hostile; which there are is found by trying.
def free_keys() -> dict[tuple[str, ...], Any]:
    keys = {}
    for at in KINDS:
        plain, address = MIXED.format(at[-1]), "https://h/" + MIXED.format(at[-1]).replace(" ", "")
        candidates = [plain, plain + "{slide}", address]
        found = [value for text in candidates for value in taken(at, text)]
        if found:
            keys[at] = found[0]
    return keys


def run_commands(output: str, folder: Path) -> list[dict]:
    """What each verb of a dry run's commands receives when a shell runs them."""
    commands = re.findall(r"^(?:Shell command: | {8}) *(gigapipe .*)$", output, re.MULTILINE)
    assert commands, output
    for log in {path for command in commands for path in re.findall(r"(?:>|tee) (results/[\w./-]+)", command)}:
        (folder / log).parent.mkdir(parents=True, exist_ok=True)
    stub = """gigapipe() { { printf '%s\\0' "$@"; printf '\\1\\0'; } >> "$RECEIVED"; }\n"""
    script = folder / "commands.sh"
    script.write_text("cd -- " + shlex.quote(str(folder)) + "\nRECEIVED=received\n" + stub + "\n".join(commands))
    subprocess.run(["bash", script], check=True)
    lines = (folder / "received").read_text().split("\1\0")
    (folder / "received").unlink()
    return [vars(parser().parse_args(line.split("\0")[:-1])) for line in lines if line]


def write_config(config: dict) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


@pytest.fixture
def hostile_project(project) -> Iterator[Path]:
    before = set(project.iterdir())
    yield project
    for path in set(project.iterdir()) - before:
        subprocess.run(["rm", "-rf", "--", path], check=True)


def nested(keys: dict[tuple[str, ...], Any]) -> dict:
    config: dict = {}
    for at, value in keys.items():
        group = config
        for name in at[:-1]:
            group = group.setdefault(name, {})
        group[at[-1]] = value
    return config


@pytest.mark.slow
def test_every_text_of_config_and_sheet_is_received_as_it_is(hostile_project, monkeypatch):
    folder, keys = hostile_project, free_keys()
    monkeypatch.chdir(folder)
    assert {("slides",), ("source",), ("training", "weights"), ("gdc", "mirrors"), ("cohort", "classes")} < set(keys)
    names = [f"{MIXED.format(i)}.svs" for i in range(6)]
    columns = ["patient", "site", "label", "tissue", "mask"]
    rows = [{"slide": f"s{i}"} | {name: f"{MIXED.format(f'{name}{i // 2}')}" for name in columns} for i in range(8)]
    for row, name in zip(rows, names, strict=False):
        row["source"] = name
        Path(name).write_text(name, encoding="utf-8")
    file_id = "00000000-0000-0000-0000-00000000000"
    for i, row in enumerate(rows[6:]):
        row |= {"source": f"gdc:{file_id}{i}", "filename": f"{MIXED.format('filename')}.svs"}
    rows[7]["source"] = re.sub("[ ;#?]", "", f"https://h/{MIXED.format('remote')}.svs")
    for number, row in enumerate(rows):
        row[keys["target",]] = number
        for drawn in ("tissue", "mask"):
            Path(row[drawn]).touch()
    sheet = keys["slides",]
    pd.DataFrame(rows).to_csv(sheet, sep="\t", index=False)
    pd.DataFrame({"slide": [row["slide"] for row in rows], "fold": [i // 2 % 4 for i in range(8)]}).to_csv(
        keys["folds", "given"], index=False
    )
    for at in (("training", "weights"), ("methods", "weights"), ("gdc", "token")):
        Path(keys[at]).touch()
    elsewhere = [row | {"slide": f"e{i}"} for i, row in enumerate(rows[:6])]
    pd.DataFrame(elsewhere).to_csv(keys["external",]["a"], sep="\t", index=False)
    ours = {at: value for at, value in keys.items() if at[0] not in ("cohort", "external", "methods")}
    config = nested(ours) | {"resolutions": [{"mpp": 8, "canvas": 52, "mesh": [1, 1, 1]}], "phantom": {"patients": 8}}
    config["training"]["batch"] = 1
    found = []
    tasks = {task.needs: name for name, task in TASKS.items()}
    for needed in ("label", "target", "mask"):
        if needed == "mask":  # whose network takes no such weights
            del config["training"]["weights"]
        write_config(config | {"task": tasks[needed]} | ({"external": keys["external",]} if needed == "label" else {}))
        _, output = snakemake(folder, "-n", "-p", "--cores", 1, "--configfile", "mine.yaml")
        found += run_commands(output, folder)
    config["training"]["weights"] = keys["training", "weights"]
    method = {at[1]: value for at, value in keys.items() if at[0] == "methods"}
    write_config(config | {"methods": [{"name": "a"} | method]})
    _, output = snakemake(folder, "-n", "-p", "--cores", 1, "--configfile", "mine.yaml")
    found += run_commands(output, folder)
    asked = {at[1]: value for at, value in keys.items() if at[0] == "cohort"}
    for left in ({"projects": ["A"], "classes": asked.pop("classes")}, asked):
        write_config({"slides": f"new{sheet}", "cohort": left})
        for path in [left.get("sites"), *left.get("manifests", {}).values()]:
            if path:
                Path(path).touch()
        _, output = snakemake(folder, "-n", "-p", "--cores", 1, "--configfile", "mine.yaml")
        found += run_commands(output, folder)
    assert not list(folder.rglob("HARM"))

    arrived, of_sheet = set(texts_of(found)), [row[name] for row in rows[:7] for name in ("source", "tissue")]
    assert not {at for at, value in keys.items() if not set(texts_of(value)) <= arrived}, sorted(arrived)
    assert {*of_sheet, rows[6]["filename"], rows[7]["source"]} <= arrived, sorted(arrived)


FUTURE = time.time() + 10**6
REFUSED = {
    "future": ({"source": "future.svs"}, f"future.svs is dated {time.ctime(FUTURE)}, in the future by this machine's"),
    "source": ({"source": "{slide}.svs"}, "slide s0: source: {slide}.svs contains {slide}, which Snakemake would"),
    "pathvar": ({"source": "<results>.svs"}, "source: <results>.svs contains <results>, which Snakemake would"),
    "break": ({"label": "a\nb"}, r"slide s0: label: 'a\nb' contains a line break; remove it"),
    "name": ({"slide": "-s"}, "slide '-s' names files: use letters, digits"),
    "filename": ({"filename": "a/b.svs"}, "slide s0: filename: 'a/b.svs' does not match"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_sheet_s_text_that_nothing_can_be_done_with_is_refused_in_a_line(hostile_project, case):
    cells, message = REFUSED[case]
    rows = [{"slide": f"s{i}", "patient": "p", "label": f"l{i}", "source": f"s{i}.svs"} for i in range(3)]
    rows[0] |= cells
    for row in rows:
        (hostile_project / row["source"]).touch()
        os.utime(hostile_project / row["source"], (FUTURE, FUTURE) if row["source"] == "future.svs" else None)
    pd.DataFrame(rows).to_csv(hostile_project / "mine.tsv", sep="\t", index=False)
    status, output = snakemake(hostile_project, "-n", "--config", "slides=mine.tsv", check=False)
    assert status == 1 and message in output.splitlines()[-1], output


PROFILES = {
    "account": (
        {"GIGAPIPE_ACCOUNT": "a; touch HARM"},
        [],
        "GIGAPIPE_ACCOUNT is 'a; touch HARM'; use only",
    ),
    "python": ({"GIGAPIPE_ACCOUNT": "__import__('os')"}, [], "GIGAPIPE_ACCOUNT is \"__import__('os')\"; use only"),
    "queue": ({}, ["lsf_queue=$(touch HARM)"], "profile: lsf_queue: '$(touch HARM)' contains '$('"),
    "launcher": ({}, ["launcher=run {n}"], "profile: launcher: 'run {n}' is not a valid pattern (KeyError('n'))"),
    "number": ({}, ["ranks_per_node=four"], "profile: ranks_per_node: found 'four'; give a whole number"),
}


@pytest.mark.parametrize("case", PROFILES)
def test_a_profile_s_text_that_a_shell_would_take_otherwise_is_refused_in_a_line(project, monkeypatch, case):
    environment, resources, message = PROFILES[case]
    for name, value in ({"GIGAPIPE_ACCOUNT": "abc-123"} | environment).items():
        monkeypatch.setenv(name, value)
    changed = ["--default-resources", "lsf_project=$GIGAPIPE_ACCOUNT", *resources] if resources else []
    status, output = snakemake(project, "-n", "--profile", "summit", *changed, check=False)
    assert status and message in output.splitlines()[-1], output


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "'=1+1", "''-x", '=HYPERLINK("http://h","x")', "－1", "-a", "=é"]
PLAIN = ["a", "'a", "'", "-", "1", "-1.5", "+2e-3", "-inf", "", "a=b"]


@pytest.mark.parametrize("text", FORMULAS + PLAIN)
def test_a_table_s_text_is_text_to_a_spreadsheet_and_read_as_it_was(tmp_path, text):
    table = pd.DataFrame({"a": [text, "x"], "b": [-1.5, 2.0], "c": [-1, 2], "=d": ["", ""]})
    write_table(table, tmp_path / "table.tsv")
    read = read_written(tmp_path / "table.tsv", dtype={"a": str}, keep_default_na=False)
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    cells = (tmp_path / "table.tsv").read_text().splitlines()[1].split("\t")
    assert cells[1:] == ["-1.5", "-1", ""]
    assert (cells[0].strip('"')[:1] == "'" and cells[0].strip('"') != text) == (text in FORMULAS)


def test_formulas_of_a_sheet_are_none_in_the_tables_that_are_made_of_it(tmp_path):
    rows = [
        {"slide": f"s{i}", "patient": f"=P{i}", "site": f"@h{i}", "label": FORMULAS[i % 2], "source": f"=s{i}.svs"}
        for i in range(12)
    ]
    write_sheet(pd.DataFrame(rows), tmp_path / "mine.tsv", "made")
    assert read_sheet(tmp_path / "mine.tsv").to_dict("records") == rows
    gigapipe("folds", tmp_path / "mine.tsv", tmp_path, "--folds", 3)
    folds = read_folds(tmp_path / "folds.tsv")
    assert folds["label"].tolist() == [row["label"] for row in rows]
    for table in tmp_path.glob("*.tsv"):
        cells = [cell for line in table.read_text().splitlines() for cell in line.split("\t")]
        assert cells and not any(re.match("[=+@-]", cell.strip('"')) for cell in cells), table


def test_every_table_is_written_by_the_one_writer():
    others = [
        path for path in (ROOT / "gigapipe").rglob("*.py")
        if ".to_csv(" in path.read_text("utf-8") and path.name != "written_tables.py"
    ]  # fmt: skip
    assert others == []
