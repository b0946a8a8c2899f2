#!/usr/bin/env python3
"""A simulation of Summit's LSF: bsub, bjobs, bhist, bkill and jsrun, by whichever name it is called.

It runs jobs on this machine, one after another begun, and refuses what Summit's easy mode refuses: a job without -P, -W
or -nnodes, or with -n, -R or its script on standard input; resource sets that do not fit nodes of 6 GPUs and 42 cores.
With SIMULATED_LSF_SITE=plain it takes -n and -R, and no -nnodes, as LSF does elsewhere. It knows nothing else of LSF.
State is in the folder $SIMULATED_LSF: of each job its state and its process; and lines, every command as it came. Of
a job N there may be files of what LSF has forgotten: N.no-bjobs, N.no-bhist, N.ended: all but its output, as soon as it
has ended, and N.lost: that it has ended; and `down`, for a time in which it does not answer.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

CORES, GPUS = 42, 6
folder = Path(os.environ["SIMULATED_LSF"])


def refuse(why: str) -> None:
    sys.exit(f"{why}. Request aborted by esub. Job not submitted.")


def bsub(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("-P", "-W", "-nnodes", "-q", "-alloc_flags", "-J", "-o", "-n", "-gpu"):
        parser.add_argument(name)
    parser.add_argument("-R", action="append")
    parser.add_argument("script", nargs="*")
    args = parser.parse_args(arguments)
    if os.environ.get("SIMULATED_LSF_SITE") == "plain":
        if not (args.P and args.W and args.n) or args.nnodes or args.alloc_flags:
            refuse("this site needs -P, -W and -n, and knows no easy mode")
    elif not (args.P and args.W and args.nnodes):
        refuse("easy mode needs -P, -W and -nnodes")
    elif args.n or args.R:
        refuse("easy mode takes neither -n nor -R")
    if not args.script:
        refuse("no script")
    job = 1
    while True:  # until a number is free
        try:
            (folder / f"{job}.state").touch(exist_ok=False)
            break
        except FileExistsError:
            job += 1
    (folder / f"{job}.state").write_text("RUN")
    print(f"Job <{job}> is submitted to queue <{args.q}>.", flush=True)
    if os.fork():
        return
    os.setsid()
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(args.o.replace("%J", str(job)), os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    environment = {**os.environ, "LSB_JOBID": str(job), "SIMULATED_NODES": args.nnodes or "1"}
    process = subprocess.Popen(args.script, env=environment, start_new_session=True)
    (folder / f"{job}.pid").write_text(str(process.pid))
    try:
        status = process.wait(timeout=60 * float(args.W))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status = 1
    if (folder / f"{job}.lost").exists():
        return
    if (folder / f"{job}.ended").exists():
        (folder / f"{job}.no-bhist").touch()
        (folder / f"{job}.no-bjobs").touch()
    # As LSF ends the file of -o.
    print(f"\nExited with exit code {status}." if status else "\nSuccessfully completed.", flush=True)
    (folder / f"{job}.state").write_text("EXIT" if status else "DONE")


def bjobs(arguments: list[str]) -> None:
    if (folder / "down").exists():
        print("LSF is down. Please wait ...", flush=True)
        time.sleep(60)
    status = 0
    for job in filter(str.isdigit, arguments):
        if (folder / f"{job}.no-bjobs").exists():
            print(f"Job <{job}> is not found", file=sys.stderr)
            status = 255
        else:
            print(f"{job} " * ("jobid stat" in arguments) + (folder / f"{job}.state").read_text())
    sys.exit(status)


def bhist(arguments: list[str]) -> None:
    """As `bhist -l` does, which breaks lines at 80 letters, within words, and indents what follows."""
    job = arguments[-1]
    if (folder / f"{job}.no-bhist").exists():
        sys.exit("No matching job found")
    state = (folder / f"{job}.state").read_text()
    ends = {"DONE": "Done successfully. The CPU time used is 1.0 seconds;", "EXIT": "Exited with exit code 1. The CPU"}
    lines = [
        f"Job <{job}>, Job Name <gigapipe.train.1>, User <me>, Command <echo Exited with Done successfully>",
        "Fri Nov 27 10:00:00: Submitted from host <login>, to Queue <batch>, CWD <$HOME>;",
        "Fri Nov 27 10:00:05: Starting (Pid 1234);",
    ]
    if state in ends:
        lines.append(f"Fri Nov 27 10:10:05: {ends[state]}")
    for line in lines:
        print("\n".join([line[:30], *(" " * 21 + line[at : at + 30] for at in range(30, len(line), 30))]))


def bkill(arguments: list[str]) -> None:
    """As LSF does: SIGINT, SIGTERM and, ten seconds later, SIGKILL."""
    for job in arguments:
        pid = int((folder / f"{job}.pid").read_text())
        for number, wait in ((signal.SIGINT, 1), (signal.SIGTERM, 10), (signal.SIGKILL, 0)):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                break
            end = time.monotonic() + wait
            while time.monotonic() < end and (folder / f"{job}.state").read_text() == "RUN":
                time.sleep(0.1)


def jsrun(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("-n", "-a", "-c", "-g", "-r"):
        parser.add_argument(name, type=int)
    parser.add_argument("-b")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(arguments)
    a_node = args.r or min(CORES // args.c, GPUS // args.g if args.g else CORES)
    nodes = int(os.environ["SIMULATED_NODES"])
    if a_node * args.c > CORES or a_node * (args.g or 0) > GPUS:
        sys.exit(f"jsrun: {a_node} resource sets of {args.c} cores and {args.g} GPUs do not fit a node")
    if args.n > a_node * nodes:
        sys.exit(f"jsrun: {args.n} resource sets, {a_node} a node, do not fit {nodes} nodes")
    os.execvp("mpiexec", ["mpiexec", "-n", str(args.n * args.a), *args.command])


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    with open(folder / "lines", "a", encoding="utf-8") as lines:
        lines.write(f"{name} {shlex.join(sys.argv[1:])}\n")
    globals()[name](sys.argv[1:])
