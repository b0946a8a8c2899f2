"""Where the tasks of a pyramid run: threads or processes here, a cluster of Dask's, or jobs that are submitted."""

import contextlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import dask
import dask.threaded

from gigapipe.errors import InputError

QUEUES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster", "sge": "SGECluster"}  # of dask-jobqueue
LOST = {"BrokenProcessPool", "KilledWorker"}  # what Dask says of processes that crashed; the second is distributed's
# What Dask serves by http is for people, and has no secret: nothing at all, and to nobody but this host.
SILENT = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
NO_PAGES = "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES=[]"


@contextlib.contextmanager
def workers(threads: int, scheduler: str, shared: Path) -> Iterator[None]:
    """Within, Dask computes by `scheduler`, as `gigapipe.pyramids.build.build_pyramid` has it.

    `shared` is a folder that all who compute see: in it lies, meanwhile, what jobs know each other by.
    """
    if scheduler == "threads":
        # A pool that is waited for: if a task fails, no other still writes when the folder is removed.
        # By the function, not its name: looking a name up imports `distributed`, where that is installed.
        with ThreadPoolExecutor(threads) as pool, dask.config.set(scheduler=dask.threaded.get, pool=pool):
            yield
    elif scheduler == "processes":
        with dask.config.set(scheduler="processes", num_workers=threads, chunksize=1):
            yield
    else:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(f"scheduler {scheduler}: needs `pip install distributed`") from None
        cluster = submitted(scheduler, threads, shared) if scheduler in QUEUES else contextlib.nullcontext(scheduler)
        with cluster as address, Client(address):
            yield


@contextlib.contextmanager
def submitted(queue: str, jobs: int, shared: Path) -> Iterator:
    """A cluster of Dask's own, of so many jobs; what each of them asks for stands in Dask's configuration.

    Whoever connects to one of its processes must hold the key that is made for it, by TLS.
    """
    try:
        import dask_jobqueue
    except ImportError:
        raise InputError(f"scheduler {queue}: needs `pip install dask-jobqueue`") from None
    configured = f"jobqueue.{queue}"
    options = SILENT | dask.config.get(f"{configured}.scheduler-options", {})
    arguments = [*dask.config.get(f"{configured}.worker-extra-args", [])]
    prologue = [*dask.config.get(f"{configured}.job-script-prologue", [])]
    pages: dict[str, list] = {}
    if not options["dashboard"]:
        pages = {"distributed.scheduler.http.routes": []}
        arguments += ["--no-dashboard", "--dashboard-address", SILENT["dashboard_address"]]
        prologue.append(NO_PAGES)
    with dask.config.set(pages), own_credentials(shared, queue) as credentials:
        cluster = getattr(dask_jobqueue, QUEUES[queue])(
            security=security(credentials),
            scheduler_options=options,
            worker_extra_args=arguments,
            job_script_prologue=prologue,
        )
        with cluster:
            cluster.scale(jobs=jobs)
            yield cluster


class Credentials(NamedTuple):
    """What the processes of one cluster know each other by: a certificate, which signs itself, and its key."""

    certificate: Path
    key: Path


@contextlib.contextmanager
def own_credentials(shared: Path, queue: str) -> Iterator[Credentials]:
    """New ones in `shared`, for this user alone to read; they are gone when the block ends."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise InputError(f"scheduler {queue}: needs the program openssl, to make the certificates of its jobs")
    folder = Path(tempfile.mkdtemp(prefix="tls-", dir=shared)).absolute()
    made = Credentials(folder / "certificate.pem", folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "30", "-subj", "/CN=gigapipe", "-keyout", str(made.key), "-out", str(made.certificate)]
    try:
        done = subprocess.run(command, umask=0o077, capture_output=True, text=True)
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise InputError(f"scheduler {queue}: openssl could not make a certificate for its jobs ({said})")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def security(credentials: Credentials):
    """Of Dask's kind: all who take part are let in by the same credentials, and nobody without."""
    from distributed.security import Security

    class OfJobs(Security):
        def get_tls_config_for_role(self, role: str) -> dict[str, str | None]:
            told = super().get_tls_config_for_role(role)
            if role != "worker":
                return told
            # dask-jobqueue writes them into a job's script, for a shell, as they are.
            return {name: value and shlex.quote(value) for name, value in told.items()}

    certificate, key = map(str, credentials)
    of_roles = {f"tls_{role}_cert": certificate for role in ("client", "scheduler", "worker")}
    of_roles |= {f"tls_{role}_key": key for role in ("client", "scheduler", "worker")}
    return OfJobs(require_encryption=True, tls_ca_file=certificate, **of_roles)
