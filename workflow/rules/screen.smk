# What the screen shows: before the first job what is made, why, for how long and in how much room; then how far each
# stage is; of a failed rule its line; at the end the time it took, beside the forecast. With -p each job, too.

import time

from snakemake.logging import logger as snakemake_says
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from gigapipe.planning.forecast import (
    CHECKPOINT,
    MAP_BYTES,
    MODEL_BYTES,
    PHANTOM_BYTES,
    Job,
    Progress,
    duration,
    forecast,
    measurements,
)
from gigapipe.slides.disk_space import amount

NOUNS = {
    "phantom": "phantom slides",
    "download": "slides to download",
    "download_again": "slides to download again",
    "pyramid": "pyramids",
    "add": "resolutions added to pyramids",
    "mask": "masks",
    "train": "trainings",
    "predict": "predictions",
    "segment": "segmentations",
    "map": "resolutions' maps",
}
JOB_BY_JOB = {
    LogEvent.JOB_INFO,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
}
WORDS = ("Select jobs to execute", "Reasons:", "Using shell:", "Conda environments:")
FOLLOWS = "follows from"
SAMPLED = 3  # slides by which the room of pyramids is judged: a dry run waits for it


def jobs_to_run():
    """The jobs of the plan that run something, in the order in which they may."""
    planned = {job for job in workflow.dag.needrun_jobs() if not job.rule.norun}
    return [
        (stage, job)
        for stage, jobs in enumerate(workflow.dag.toposorted(planned))
        for job in jobs
    ]


def as_forecast(stage, job):
    """What a job's time depends on."""
    made_by, wildcards = job.rule.name, dict(job.wildcards.items())
    slides, seen, steps = len(SHEET), 0, 0
    if made_by in ("pyramid", "add"):
        path = path_of_slide(wildcards["slide"])
        # About 0.2 bytes a pixel: JPEG of the quality that scanners take.
        seen = path.stat().st_size / 0.2 if path.exists() else 0
    elif made_by in ("train", "predict", "segment", "map"):
        side = canvas_asked_for(job.wildcards)
        trained_on = CONFIG.folds.number - 2  # of so many folds
        training = training_of(job.wildcards)
        an_epoch = slides * trained_on / CONFIG.folds.number
        at_least = training.least_steps * training.batch * training.accumulate
        times = {
            "train": (
                an_epoch
                if training.train == "probe"
                else max(training.epochs * an_epoch, at_least)
            ),
            "map": min(slides, 3 * CONFIG.maps),
        }.get(made_by, slides * 2 / CONFIG.folds.number)
        steps = times if made_by == "train" else 0
        seen = times * side**2 if isinstance(side, int) else 0
    name = str(job.benchmark or made_by)
    name = name.removeprefix(f"{CONFIG.pathvars.results}/benchmarks/")
    return Job(made_by, name.removesuffix(".tsv"), stage, job.threads, seen, steps)


def side_by_side():
    """How many cores, or on a cluster jobs, there are for the plan."""
    if RANKS_PER_NODE or not workflow.local_exec:
        return min(workflow.nodes or 1, 1000)
    return workflow.resource_settings.cores or os.cpu_count()


def options_in(params):
    """What params, as Snakemake notes them, say: options with their values, and other values."""
    words = []
    for param in params:
        try:
            value = ast.literal_eval(param)
        except (ValueError, SyntaxError):
            value = param
        words += shlex.split(value) if isinstance(value, str) else [str(value)]
    found, last = {}, ""
    for word in words:
        if word.startswith("--"):
            last = word.removeprefix("--")
            found[last] = ""
        else:
            found[last] = f"{found.get(last, '')} {word}".strip()
    return found


def changed_keys(reason):
    """Which keys of the config are others than those that the run before was told."""
    sides = reason.params_changed.only_old, reason.params_changed.only_new
    try:
        old, new = (
            yaml.safe_load(ast.literal_eval(next(iter(params)))) for params in sides
        )
    except (RuntimeError, ValueError, SyntaxError):  # what an older release noted
        return "config changed"
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return f"changed: {', '.join(keys)}"


def change_of(reason):
    """Which settings are others than those that an output was made with."""
    old, new = (
        options_in(params)
        for params in (reason.params_changed.only_old, reason.params_changed.only_new)
    )
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    said = [
        f"{name or 'setting'} {new.get(name) or 'none'}, was {old.get(name) or 'none'}"
        for name in changed
    ]
    return "; ".join(said[:3]) + ("; …" if len(said) > 3 else "")


def some(names):
    names = sorted(str(name) for name in names)
    return ", ".join(names[:2]) + (
        f" and {len(names) - 2} more" if len(names) > 2 else ""
    )


def why(job, planned):
    """Why a job is to run, as (what to group by, what is said of one)."""
    reason = workflow.dag.reason(job)
    after = sorted(
        {NOUNS.get(of.rule.name, of.rule.name) for of in workflow.dag.dependencies[job]}
        & {NOUNS.get(of.rule.name, of.rule.name) for _, of in planned}
    )
    if reason.forced:
        return "requested (-R, -f or -F)"
    if reason.missing_output:
        return "not computed yet"
    if reason.incomplete_output:
        return "incomplete"
    if reason.params_changed:
        return (changed_keys if job.rule.name == "settings" else change_of)(reason)
    if reason.input_changed:
        return "input files changed"
    if changed := reason.updated_input - reason.updated_input_run:
        return f"changed: {some(Path(path).name for path in changed)}"
    if reason.updated_input_run:
        return f"{FOLLOWS} {', '.join(after)}"
    return "; ".join(reason.get_names())


def bytes_of_models(planned):
    """About what models of trainings take on disk; None of a network of the user's."""
    trainings = [
        training_of(job.wildcards) for _, job in planned if job.rule.name == "train"
    ]
    if any(training.own for training in trainings):
        return None
    if not TASK.canvas:
        return 0  # of the U-Net: it has 4,492 weights
    return sum(map(bytes_of_model, trainings))


def bytes_of_model(training):
    return MODEL_BYTES[training.network] * (training.width / 64) ** 2


def number_of_maps(planned):
    """How many slides are mapped, at most, by the jobs that do so."""
    jobs = sum(job.rule.name == "map" for _, job in planned)
    return jobs * min(3 * CONFIG.maps, len(SHEET))


def bytes_of_pyramids(planned):
    """About what pyramids, and resolutions added to them, take on disk; None where no slide is here to be sampled."""
    from gigapipe.pyramids.settings import Settings
    from gigapipe.pyramids.sizes import estimate
    from gigapipe.slides.crashes import ask

    wanted = {}
    for _, job in planned:
        if job.rule.name in ("pyramid", "add"):
            mpps = getattr(job.wildcards, "mpps", "_".join(RESOLUTIONS)).split("_")
            wanted.setdefault(job.wildcards.slide, []).extend(map(float, mpps))
    here = {slide: path_of_slide(slide) for slide in wanted}
    here = {slide: path for slide, path in here.items() if path.is_file()}
    asked = [
        (here[slide], wanted[slide], Settings(**pixels_of_pyramids(slide)))
        for slide in list(here)[:SAMPLED]
    ]
    # Of what cannot be read its job says so.
    sizes = [answer.value for answer in ask(estimate, asked) if answer.value]
    found, sampled = sum(sum(size.pyramid) for size in sizes), sum(
        size.slide for size in sizes
    )
    if not wanted or not sampled:
        return None if wanted else 0
    known = [int(SHEET[slide].get("size") or 0) for slide in set(wanted) - set(here)]
    whole = sum(path.stat().st_size for path in here.values()) + sum(known)
    # What is not here, and of unknown size, is taken for the like of what is.
    whole += whole / max(1, len(wanted) - known.count(0)) * known.count(0)
    return found / sampled * whole


def room_of(planned):
    """What is going to lie on the disk, as far as it can be told."""
    pyramids, models, said = bytes_of_pyramids(planned), bytes_of_models(planned), []
    if pyramids is None:
        known = sum(int(row.get("size") or 0) for row in SHEET.values())
        slides = known or (0 if CONFIG.slides else PHANTOM_BYTES * len(SHEET))
        of = amount(slides) if slides else "size not known yet"
        said.append(f"pyramids roughly 0.7 to 6 times the size of their slides ({of})")
    elif pyramids:
        said.append(f"pyramids {amount(pyramids)}")
    if models:
        # A state is written beside those that are kept.
        of_one = max(
            CHECKPOINT * bytes_of_model(training) * (training.keep_checkpoints + 1)
            for training in TRAININGS.values()
        )
        said.append(
            f"models {amount(models)} (until it ends, a training has up to {amount(of_one)} of checkpoints)"
        )
    elif models is None:
        said.append("models of your own network unknown")
    if maps := number_of_maps(planned):
        said.append(f"maps {amount(maps * MAP_BYTES)}")
    return f"; disk space, about: {', '.join(said)}" if said else ""


def say_plan():
    """What is made, why, for how long and in how much room; what `Progress` needs."""
    planned = jobs_to_run()
    measured = measurements(RESULTS / "benchmarks")
    jobs = {
        workflow.dag.jobid(job): as_forecast(*of) for of in planned for job in of[1:]
    }
    counted = {name: [] for name in NOUNS}
    for _, job in planned:
        counted.setdefault(job.rule.name, []).append(job)
    counted = {name: of for name, of in counted.items() if of}
    told = [f"{len(of)} {NOUNS[name]}" for name, of in counted.items() if name in NOUNS]
    time_of = forecast(list(jobs.values()), measured, side_by_side())
    where = " of jobs, without waiting times in queues" if RANKS_PER_NODE else ""
    lines = [
        f"To compute: {', '.join(told) or 'tables and pages'}; {time_of}{where}{room_of(planned)}"
    ]
    following = []  # tables and pages: of these one line is enough
    for name, of in counted.items():
        reasons = {}
        for job in of:
            reasons.setdefault(why(job, planned), []).append(job)
        if name not in NOUNS and all(reason.startswith(FOLLOWS) for reason in reasons):
            following.append(name)
            continue
        for reason, jobs_of in sorted(reasons.items(), key=lambda each: -len(each[1])):
            lines.append(f"  {len(jobs_of):5} {name:12} {reason}")
    if following:
        lines.append(f"        and what follows from these: {', '.join(following)}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    return Progress(jobs, NOUNS, measured, side_by_side()), time_of


class Screen(logging.Filter):
    """Lets pass to the screen what is of use there. All is in the file that Snakemake names at its end."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.quiet = settings.quiet or set()
        self.progress = self.expected = None
        self.begun = time.monotonic()

    def filter(self, record):
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            if self.progress is not None:
                return False  # a dry run says it twice
            self.progress, self.expected = say_plan()
        elif event == LogEvent.JOB_INFO and self.progress:
            self.progress.started(record.jobid, time.monotonic())
        elif event == LogEvent.JOB_FINISHED and self.progress:
            line = self.progress.finished(record.job_id, time.monotonic())
            if line and Quietness.PROGRESS not in self.quiet:
                print(line, file=sys.stderr, flush=True)
        elif event == LogEvent.JOB_ERROR and self.quiet:
            print(line_of_failure(record), file=sys.stderr, flush=True)
        if self.settings.printshellcmds or self.settings.verbose:
            return True
        return event not in JOB_BY_JOB and not str(record.msg).startswith(WORDS)


def line_of_failure(record):
    """What a failed job said last, and of which rule it was."""
    said = []
    for path in record.log:
        path = Path(path.partition(" (")[0])
        if path.is_file():
            said += path.read_text(encoding="utf-8", errors="replace").splitlines()
    own = [line for line in said if line.startswith("gigapipe:")]
    last = (own or [line for line in said if line.strip()] or ["no message"])[-1]
    return f"{record.rule_name} failed: {', '.join(record.output)}: {last}"


def say_time(ended):
    """The forecast beside the time that the run took, on the screen and in a file."""
    if SCREEN.expected is None:
        return
    took = time.monotonic() - SCREEN.begun
    line = f"{ended} Expected time: {SCREEN.expected}. Actual time: {duration(took)}."
    print(f"\n{line}", file=sys.stderr)
    (RESULTS / "workflow").mkdir(parents=True, exist_ok=True)
    (RESULTS / "workflow/time.txt").write_text(f"{line}\n", encoding="utf-8")


SCREEN = Screen(workflow.output_settings)
if workflow.is_main_process:
    for handler in snakemake_says.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.filters.insert(0, SCREEN)


onsuccess:
    note_slides()
    say_time("Done.")
    if any(job.rule.name == "page" for job in workflow.dag.jobs):
        print(f"Report: {RESULTS}/report.html", file=sys.stderr)


onerror:
    note_slides()
    say_time("Not everything could be computed.")
