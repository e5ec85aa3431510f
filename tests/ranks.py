"""Runs a function on several ranks, each in a process of its own, over loopback."""

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback

import pytest
import torch
import torch._dynamo  # DistributedDataParallel imports it: once here, instead of in every child


class Rank:
    """A forked child; what its function returns, or raises, comes back through a file."""

    def __init__(self, folder, rank, size, port, function, args):
        self.path = os.path.join(folder, f"rank{rank}.result")
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        gc.freeze()  # what is there now, no collection shall touch: it would copy each page of it
        try:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            sys.stdout = open(os.path.join(folder, f"rank{rank}.out"), "w", buffering=1)  # noqa: SIM115
            try:
                result = ("value", function(rank, *args))
                code = 0
            except SystemExit as end:
                result, code = ("exit", end.code), end.code
            except BaseException as error:
                traceback.print_exc(file=sys.stdout)
                notes = "\n".join(getattr(error, "__notes__", []))
                result = ("error", type(error).__name__, f"{error}\n{notes}")
            with open(f"{self.path}.tmp", "wb") as f:
                pickle.dump(result, f)
            os.replace(f"{self.path}.tmp", self.path)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def exit_code(self, until):
        """Returns the exit code, or less than 0 for a signal, once it has ended."""
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"{self.path}: no end in time")
            time.sleep(0.01)

    def wait(self, until):
        """Returns what the rank came to: ("value", x), ("error", type, text), or ("signal", n)."""
        code = self.exit_code(until)
        if code < 0:
            return ("signal", -code)
        with open(self.path, "rb") as f:
            return pickle.load(f)


def start(folder, size, function, *args):
    """Starts the ranks and returns them."""
    if torch.cuda.is_available():
        pytest.skip("a process that uses a GPU cannot fork: run with CUDA_VISIBLE_DEVICES=")
    os.makedirs(folder, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return [Rank(str(folder), rank, size, port, function, args) for rank in range(size)]


def outcomes(folder, size, function, *args, limit=120):
    """Returns what each rank came to."""
    until = time.monotonic() + limit
    ranks = start(folder, size, function, *args)
    found = []
    try:
        for rank in ranks:
            found.append(rank.wait(until))
    except TimeoutError:
        for rank in ranks[len(found) + 1 :]:
            os.kill(rank.pid, signal.SIGKILL)
            os.waitpid(rank.pid, 0)
        raise
    return found


def values(folder, size, function, *args, limit=120):
    """Returns what the function returned on each rank."""
    found = outcomes(folder, size, function, *args, limit=limit)
    assert [kind for kind, *_ in found] == ["value"] * size, found
    return [value for _, value in found]


def environment():
    """Returns the variables for a program that imports the package and the tests' modules."""
    tests = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([os.path.dirname(tests), tests, os.environ.get("PYTHONPATH", "")])
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


class Torchrun:
    """A `torchrun` of a program, whose output goes to a file.

    Args:
      output: the file.
      args: torchrun's options, the program and its own arguments.
      within: a command to run it by: of another network, say.
      env: more variables.
    """

    def __init__(self, output, *args, within=(), env=None):
        self.output = output
        command = [*within, sys.executable, "-m", "torch.distributed.run", *map(str, args)]
        with open(output, "w") as f:
            self._process = subprocess.Popen(
                command,
                stdout=f,
                stderr=subprocess.STDOUT,
                env={**environment(), **(env or {})},
            )

    def send(self, signum):
        self._process.send_signal(signum)

    def wait(self, limit=120):
        """Returns the exit code."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self.end()
            raise TimeoutError(f"No end within {limit} s:\n{self.text()[-4000:]}") from None

    def end(self):
        """Ends it and its ranks, if it has not ended."""
        if self._process.poll() is None:
            self.send(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def text(self):
        """Returns what it has said so far."""
        with open(self.output, errors="replace") as f:
            return f.read()


def wait_for(path, limit=60):
    """Waits until a file is there and has content."""
    until = time.monotonic() + limit
    while not (os.path.exists(path) and os.path.getsize(path)):
        if time.monotonic() > until:
            raise TimeoutError(f"{path} did not come.")
        time.sleep(0.02)
