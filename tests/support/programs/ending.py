"""Ends two ranks right after they have met, while gloo's threads hardly get to run.

python ending.py PORT...       # once at each port
"""

import os
import sys

import torch

from trax_torch import _distributed


def run(rank, port):
    """Returns the world, whose process group lives until the process ends, as a model's would."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = port
    _distributed._LET_GO = 60.0  # on a busy machine, threads held back may take more than a second
    world = _distributed.join(device="cpu", timeout=3600.0)
    world.sum([1.0])
    for thread in map(int, os.listdir("/proc/self/task")):
        os.sched_setaffinity(thread, {sorted(os.sched_getaffinity(0))[-1]})
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    world.sum([1.0])
    return world, torch.distributed.group.WORLD


def main(ports):
    for port in ports:
        pids = []
        for rank in range(2):
            pids.append(os.fork())
            if not pids[-1]:
                return run(rank, port)  # and ends as any program does
        print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    kept = main(sys.argv[1:])
