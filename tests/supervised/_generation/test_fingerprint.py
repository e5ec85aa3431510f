"""What a model's step depends on, as a text: it changes with settings, and with nothing else."""

import functools
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from compiled_decoding import lively

from trax_torch.supervised._generation import fingerprint


def _plus(n):
    return lambda x: x + n


def _in_itself():
    def count(n):
        return count(n - 1) if n else 0

    return count


CHANGES = {
    "number": (1, 2),
    "list": ([1, [2]], [1, [3]]),
    "dict": ({"a": 1}, {"a": 2}),
    "set": ({1, 2}, {1, 3}),
    "type": (torch.float32, torch.float64),
    "closure": (_plus(1), _plus(2)),
    "code": (lambda x: x + 1, lambda x: x - 1),
    "partial": (functools.partial(max, 1), functools.partial(max, 2)),
    "namespace": (types.SimpleNamespace(n=1), types.SimpleNamespace(n=2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_changes_is_seen(name):
    one, other = CHANGES[name]
    model = lively("GRU")
    model.setting = one
    text, noted = fingerprint.text_of(model), fingerprint.Noted(model)
    assert noted.hold()

    model.setting = other
    assert not noted.hold()
    assert fingerprint.text_of(model) != text


@pytest.mark.parametrize("make", [_in_itself, lambda: list(range(10**5))], ids=["own", "large"])
def test_what_has_no_end_or_is_large_is_told_by_its_type(make):
    model = lively("GRU")
    model.setting = make()
    if isinstance(model.setting, list):
        assert len(fingerprint.text_of(model)) < 10**5
    assert fingerprint.Noted(model).hold()


TEXT = """
import hashlib
from compiled_decoding import lively
from trax_torch.supervised._generation import fingerprint
model = lively("attention")
model.setting = lambda x: x in {"a", "b", "c"} or {"d": "e"}
print(hashlib.sha256(fingerprint.text_of(model).encode()).hexdigest())
"""


def test_another_process_has_the_same_text():
    """Whatever the order of its sets."""
    tests = Path(lively.__code__.co_filename).parent
    command = [sys.executable, "-c", TEXT]
    run = functools.partial(subprocess.run, command, cwd=tests, capture_output=True, check=True)

    assert len({run().stdout for _ in range(2)}) == 1
