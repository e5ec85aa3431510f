"""Scripts run under torchrun: on one machine, through its restarts, and on two machines."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import patience
import pytest
import ranks
import torch
from figures import FOLDER, assert_close
from programs import steps

from trax_torch.supervised import training
from trax_torch.supervised._checkpoint import storage

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

PROGRAMS = pathlib.Path(steps.__file__).parent
STEPS = PROGRAMS / "steps.py"


@pytest.fixture
def launch(tmp_path):
    """Starts torchrun; whatever is left of it at the end is ended."""
    started = []

    def start(*args, **kwargs):
        run = ranks.Torchrun(str(tmp_path / f"torchrun{len(started)}.txt"), *args, **kwargs)
        started.append(run)
        return run

    yield start
    for run in started:
        run.end()


def undisturbed(tmp_path, folder, size, *options):
    """Trains without a launcher's help, in forked children, for comparison."""
    train = functools.partial(on_rank, folder=folder, options=options)
    return ranks.values(tmp_path / f"{pathlib.Path(folder).name}_ranks", size, train)


def on_rank(rank, folder, options):
    return steps.train(rank, folder, *options)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_traxs_figures_on_several_devices_hold_under_torchrun(size, launch, tmp_path):
    """With and without Adasum; see tests/golden/README.md for the tolerances.

    One figure differs on purpose: the eval of a weighted metric. Trax averages the devices' values
    in its own way; here it is the mean over all ranks' batches, each of them counting alike, as if
    one process had measured them one after another.
    """
    folder = FOLDER / f"devices{size}"
    cases = json.loads((folder / "golden.json").read_text())["cases"]
    arrays = np.load(folder / "golden.npz")
    names = [case["case"] for case in cases]
    program = PROGRAMS / "trax_devices.py"
    run = launch("--standalone", f"--nproc-per-node={size}", program, folder, tmp_path, *names)
    assert run.wait() == 0, run.text()

    results = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(size)]
    assert all(result == results[0] for result in results)
    assert {case["adasum"] for case in cases} == {False, True}
    for case in cases:
        for key, value in results[0][case["case"]].items():
            if key != "eval_WeightedCategoryCrossEntropy":
                assert_close(value, arrays[f"{case['case']}/{key}"], 1e-3)


@pytest.mark.slow
def test_torchrun_restarts_ranks_after_one_is_killed_and_the_result_is_the_same(launch, tmp_path):
    """To the last bit of weights, slots, buffers, history and data's place."""
    whole, cut, died = (str(tmp_path / name) for name in ("whole", "cut", "died"))
    run = launch(
        *("--standalone", "--nproc-per-node=2", "--max-restarts=1"),
        *(STEPS, cut, "--die-once", died),
    )
    undisturbed(tmp_path, whole, 2)
    assert run.wait() == 0, run.text()
    seconds, text = pathlib.Path(f"{cut}.rank0.error").read_text().split(" ", 1)

    assert training.differences(whole, cut) == []
    assert text.startswith("RankError: Another rank is gone")
    assert float(seconds) - float(pathlib.Path(died).read_text()) < patience.SOON
    assert "at step 5." in run.text()


@pytest.mark.slow
def test_ranks_save_one_step_when_torchrun_is_asked_to_end_and_resume_from_it(launch, tmp_path):
    whole, cut, mark = (str(tmp_path / name) for name in ("whole", "cut", "mark"))
    run = launch(
        *("--standalone", "--nproc-per-node=2", STEPS, cut),
        *("--steps", 2000, "--pause", 0.05, "--mark", mark),
    )
    run.wait_for(mark)
    run.send(signal.SIGTERM)
    code = run.wait()
    step = storage.read(cut, "model")[1]["step"]
    undisturbed(tmp_path, cut, 2, "--steps", step + 7)
    undisturbed(tmp_path, whole, 2, "--steps", step + 7)

    assert code != 0
    assert 6 <= step < 1000
    assert f"Step {step:6d}: Stopped by signal 15." in run.text()
    assert not list(tmp_path.glob("*.error"))
    assert training.differences(whole, cut) == []


@pytest.mark.exhaustive  # it rests on torchrun's own clocks, which a busy machine outruns
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="there is no /proc")
def test_what_is_left_of_the_machines_goes_on_after_one_is_lost(launch, tmp_path):
    """Three, then two: those find each other though the names of all three are there still."""
    folder, mark = tmp_path / "run", tmp_path / "mark"
    conf, port = "last_call_timeout=15,keep_alive_interval=1,is_host", ranks.free_port()
    runs = [
        launch(
            *("--nnodes=1:3", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
            *(f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf={conf}={int(machine == 0)}"),
            *(STEPS, folder, "--steps", 100, "--pause", 0.05, "--mark", mark),
        )
        for machine in range(3)
    ]
    runs[0].wait_for(mark)
    n_at_first = mark.read_text()
    runs[2].lose()
    codes = [run.wait() for run in runs[:2]]

    assert n_at_first == "3"
    assert codes == [0, 0], runs[0].text() + runs[1].text()
    assert storage.read(str(folder), "model")[1]["step"] == 100
    assert "Resumed from" in runs[0].text() + runs[1].text()


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="threads cannot be held back here")
def test_processes_end_in_order_however_late_the_threads_between_ranks_are():
    """One that is last to let go of a tensor aborts an interpreter that is ending."""
    ports = [str(ranks.free_port()) for _ in range(4)]
    command = [sys.executable, PROGRAMS / "ending.py", *ports]
    ended = subprocess.run(command, env=ranks.environment(), capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["0"] * 8, ended.stderr


# Two machines.


class Hosts:
    """Two network namespaces that see each other, and nothing else: two machines with a cable."""

    def __init__(self):
        self.names = [f"trax{os.getpid()}{letter}" for letter in "ab"]
        self.links = [f"tt{os.getpid()}{letter}" for letter in "ab"]
        self.addresses = ["10.199.77.1", "10.199.77.2"]

    def lay(self):
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
            _ip("link", "set", link, "netns", name)
            _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def cut(self):
        """Takes the cable out."""
        _ip("-n", self.names[1], "link", "set", self.links[1], "down")

    def mend(self):
        _ip("-n", self.names[1], "link", "set", self.links[1], "up")

    def remove(self):
        for name in self.names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)

    def options(self, host):
        return {
            "network": self.names[host],
            "env": {"GLOO_SOCKET_IFNAME": self.links[host]},
        }


def _ip(*args):
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("there is no ip(8) to make network namespaces with")
    made = Hosts()
    try:
        try:
            made.lay()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


def launch_on_both(launch, hosts, *program):
    return [
        launch(
            *("--nnodes=2", f"--node-rank={host}", "--nproc-per-node=1"),
            *(f"--master-addr={hosts.addresses[0]}", "--master-port=29511", *program),
            **hosts.options(host),
        )
        for host in (0, 1)
    ]


@pytest.mark.slow
def test_two_machines_train_as_one_does(hosts, launch, tmp_path):
    """The checkpoints are equal to the last bit."""
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    runs = launch_on_both(launch, hosts, STEPS, two)
    undisturbed(tmp_path, one, 2)
    codes = [run.wait() for run in runs]

    assert codes == [0, 0], runs[0].text() + runs[1].text()
    assert training.differences(one, two) == []


@pytest.mark.slow
def test_a_machine_that_is_cut_off_is_an_error_on_the_other_within_the_timeout(
    hosts, launch, tmp_path
):
    def check(timeout):
        folder, mark = str(tmp_path / f"run{timeout}"), str(tmp_path / f"mark{timeout}")
        options = ("--steps", 2000, "--pause", 0.05, "--mark", mark, "--timeout", timeout)
        runs = launch_on_both(launch, hosts, STEPS, folder, *options)
        try:
            runs[0].wait_for(mark)
            hosts.cut()
            cut_at = time.monotonic()
            paths = [f"{folder}.rank{rank}.error" for rank in (0, 1)]
            for run, path in zip(runs, paths, strict=True):
                run.wait_for(path)
        finally:
            hosts.mend()
            for run in runs:
                run.end()

        for path in paths:
            seconds, text = pathlib.Path(path).read_text().split(" ", 1)
            assert text.startswith("RankError: Another rank is gone or does not answer: ")
            assert float(seconds) - cut_at < timeout + patience.SOON

    patience.with_more_time(check, 8, 60)
