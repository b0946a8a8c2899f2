"""Who is let into a cluster of Dask's whose jobs Slurm runs: strangers.py FOLDER prints it as JSON, in one line.

It is run where the Slurm is. `sockets` is all that the cluster's processes listen at, and what each of them answers.
"""

import asyncio
import contextlib
import http.client
import json
import os
import sys
import tempfile
from pathlib import Path

import psutil
from distributed import Client
from distributed.comm import connect

from gigapipe.pyramids.schedulers import Credentials, own_credentials, security, submitted


def let_in(address: str, **how) -> bool:
    async def ask() -> None:
        comm = await connect(address, timeout=2, **how)
        comm.abort()

    try:
        asyncio.run(ask())
    except (OSError, RuntimeError):
        return False
    return True


def pages(port: int) -> dict[str, int]:
    """What a browser on this host is answered, by page; nothing if that is not in http."""
    answers = {}
    with contextlib.suppress(OSError, http.client.HTTPException):
        for page in ("health", "metrics", "status", "json/identity.json", "info/main/workers.html"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", f"/{page}")
            answers[page] = connection.getresponse().status
    return answers


def processes() -> set[psutil.Process]:
    """This one, which has the scheduler, and those of the jobs."""
    found = {psutil.Process()}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if "distributed.cli.dask_worker" in process.cmdline() and process.cwd() == os.getcwd():
                found |= {process, *process.children(recursive=True)}
    return found


shared = Path(sys.argv[1])
with submitted("slurm", 1, shared) as cluster, Client(cluster) as own:
    own.wait_for_workers(1, timeout=60)
    found = {"sum": own.submit(sum, [1, 2]).result(), "sockets": []}
    secrets = sorted(shared.rglob("*.pem"))
    found["modes"] = sorted({oct(p.stat().st_mode & 0o777) for path in secrets for p in (path, path.parent)})
    ours = security(Credentials(*secrets)).get_connection_args("client")
    with own_credentials(Path(tempfile.mkdtemp()), "slurm") as other:
        theirs = security(other).get_connection_args("client")
        for process in processes():
            for listening in process.net_connections("tcp"):
                if listening.status != psutil.CONN_LISTEN:
                    continue
                host, port = listening.laddr
                said = {"address": host, "port": port, "pages": pages(port)}
                if not said["pages"]:
                    place = "127.0.0.1" if host in ("0.0.0.0", "::") else host
                    said["plain"] = let_in(f"tcp://{place}:{port}")
                    said["other key"] = let_in(f"tls://{place}:{port}", **theirs)
                    said["own key"] = let_in(f"tls://{place}:{port}", **ours)
                found["sockets"].append(said)
found["left"] = list(map(str, shared.rglob("*.pem")))
print(json.dumps(found))
