"""Runs a function on several ranks, each in a process of its own, over loopback."""

import ctypes
import gc
import importlib
import itertools
import os
import pathlib
import pickle
import random
import signal
import socket
import sys
import time
import traceback

import pytest
import torch
import torch._dynamo  # DistributedDataParallel imports it: once here, instead of in every child

_PORTS = range(12000, 32000)
_WORKERS = 8  # tests that run side by side, at most
LIMIT = 600  # seconds that anything may take, on a machine however busy
_turns = itertools.count(random.SystemRandom().randrange(len(_PORTS)))


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
            torch.set_num_threads(1)  # a forked child has lost OpenMP's others, and would wait
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
    port = free_port()
    return [Rank(str(folder), rank, size, port, function, args) for rank in range(size)]


def free_port():
    """Returns the number of a port of this machine that nobody listens at, and no one is given.

    It lies below those that the system hands out by itself: a rank of another test, which listens
    wherever it may, could have one of those before the rank that it is meant for. Tests that run
    side by side have numbers of their own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for n in _turns:
        port = _PORTS[(n * _WORKERS + worker % _WORKERS) % len(_PORTS)]
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as stores do
            try:
                s.bind(("", port))
            except OSError:
                continue
        return port
    raise AssertionError


def outcomes(folder, size, function, *args, limit=LIMIT):
    """Returns what each rank came to."""
    until = time.monotonic() + limit
    ranks = start(folder, size, function, *args)
    found = []
    try:
        for rank in ranks:
            found.append(rank.wait(until))
    except TimeoutError as error:
        for rank in ranks[len(found) + 1 :]:
            os.kill(rank.pid, signal.SIGKILL)
            os.waitpid(rank.pid, 0)
        error.add_note(f"Before it ended: {found}")
        raise
    return found


def values(folder, size, function, *args, limit=LIMIT):
    """Returns what the function returned on each rank."""
    found = outcomes(folder, size, function, *args, limit=limit)
    assert [kind for kind, *_ in found] == ["value"] * size, found
    return [value for _, value in found]


def environment():
    """Returns the variables for a program that imports the package and the tests' modules."""
    support = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(support))
    path = os.pathsep.join([root, support, os.environ.get("PYTHONPATH", "")])
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


class Torchrun:
    """A `torchrun` of a program, whose output goes to a file.

    It runs in a forked child, which has torch already; its ranks are processes of their own.

    Args:
      output: the file.
      args: torchrun's options, the program and its own arguments.
      network: the network namespace to run it in.
      env: more variables.
    """

    def __init__(self, output, *args, network=None, env=None):
        self.output, self._code = output, None
        importlib.import_module("torch.distributed.run")  # once here, instead of in every child
        self._pid = os.fork()
        if not self._pid:
            _run_torchrun(output, [*map(str, args)], network, {**environment(), **(env or {})})

    def send(self, signum):
        os.kill(self._pid, signum)

    def wait(self, limit=LIMIT):
        """Returns the exit code, or less than 0 for a signal."""
        if not self._has_ended(limit):
            self.end()
            raise TimeoutError(f"No end within {limit} s:\n{self.text()[-4000:]}")
        return self._code

    def wait_for(self, path, limit=LIMIT):
        """Waits until a file is there and has content; an error if it ends before."""
        until = time.monotonic() + limit
        while not _has_content(path):
            is_over = self._has_ended(0) or time.monotonic() > until
            if is_over and not _has_content(path):
                raise TimeoutError(f"{path} did not come:\n{self.text()[-4000:]}")
            time.sleep(0.02)

    def end(self):
        """Ends it and its ranks, if it has not ended."""
        if not self._has_ended(0):
            self.send(signal.SIGTERM)
            if not self._has_ended(20):
                self.send(signal.SIGKILL)
                self._has_ended(20)

    def lose(self):
        """Ends it and its ranks at once, as if their machine had gone."""
        found = pathlib.Path(f"/proc/{self._pid}/task").glob("*/children")
        for pid in [self._pid, *(int(n) for path in found for n in path.read_text().split())]:
            os.kill(pid, signal.SIGKILL)

    def _has_ended(self, limit):
        until = time.monotonic() + limit
        while self._code is None:
            done, status = os.waitpid(self._pid, os.WNOHANG)
            if done:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return False
            else:
                time.sleep(0.01)
        return True

    def text(self):
        """Returns what it has said so far."""
        with open(self.output, errors="replace") as f:
            return f.read()


def _run_torchrun(output, args, network, env):
    """Is torchrun from here on, as in a process of its own; does not return."""
    code = 1
    try:
        gc.freeze()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        if network is not None:
            with open(f"/var/run/netns/{network}") as its:
                if ctypes.CDLL(None, use_errno=True).setns(its.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "no way into the network", network)
        torch.distributed.run.main(args)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _has_content(path):
    return os.path.exists(path) and os.path.getsize(path) > 0
