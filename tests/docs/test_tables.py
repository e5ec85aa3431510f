"""What the guides say of other libraries' names and ours, side by side, names things that exist."""

import ast
import dataclasses
import functools
import inspect
import re
import typing
from pathlib import Path

import packages
import pytest
import torch

import trax_torch
import trax_torch.interop.grammars
from trax_torch import interop, models, optimizers, supervised
from trax_torch import layers as tl
from trax_torch.supervised import (
    EvalTask,
    Loop,
    TrainingStepCallback,
    TrainTask,
    callbacks,
    decoding,
    loggers,
    lr_schedules,
    training,
)

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = sorted(GUIDES.glob("from_*.md"))
OTHERS = sorted({*GUIDES.glob("*.md"), *GUIDES.parent.glob("start/*.md")} - {*PAGES})
OURS = {
    "EvalTask": EvalTask,
    "Loop": Loop,
    "TrainTask": TrainTask,
    "callbacks": callbacks,
    "decoding": decoding,
    "functools": functools,
    "loggers": loggers,
    "interop": interop,
    "loop": Loop,
    "lr_schedules": lr_schedules,
    "models": models,
    "optimizers": optimizers,
    "supervised": supervised,
    "tl": tl,
    "torch": torch,
    "training": training,
    "trax_torch": trax_torch,
}
SPAN = re.compile(r"`([^`]+)`")
METHOD = re.compile(r"(\w+)\(self(?:, ([\w, ]+))?\)$")


def rows(page):
    """The rows of the table of names: theirs, ours, and what differs."""
    table = page.read_text().partition("## What stands where")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def ours(page):
    """The code of this package, and torch's, that a page names: in its second column and third."""
    spans = [span for _, *cells in rows(page) for cell in cells for span in SPAN.findall(cell)]
    return parsed(spans)


def parsed(spans):
    """Those of them that are code which names something of this package, or of torch's."""
    found = []
    for span in spans:
        try:
            tree = ast.parse(span)
        except SyntaxError:
            continue  # a command, or half a line
        if any(isinstance(n, ast.Name) and n.id in OURS for n in ast.walk(tree)):
            found.append((span, tree))
    return found


def found(node):
    """What a dotted name of ours is; None for other expressions."""
    if isinstance(node, ast.Name):
        return OURS.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = found(node.value)
        if isinstance(owner, property):
            owner = typing.get_type_hints(owner.fget)["return"]
        return None if owner in (None, typing.Any) else getattr(owner, node.attr)
    return None


def check_call(call):
    function = found(call.func)
    if function is None or isinstance(function, property):
        return
    arguments = [object() for _ in call.args]
    names = {keyword.arg: object() for keyword in call.keywords if keyword.arg}
    if function is functools.partial:
        made = found(call.args[0])
        if made is not None:
            inspect.signature(made).bind_partial(**names)
        return
    try:
        signature = inspect.signature(function)
    except ValueError:  # torch's functions in C
        return
    if inspect.isfunction(function) and ast.unparse(call.func).startswith("loop."):
        arguments.insert(0, object())  # the loop itself
    signature.bind_partial(*arguments, **names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_name_and_argument_of_ours_exists(page):
    code = ours(page)

    assert len(code) > 10
    check_names(page, code)


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.name)
def test_so_does_each_that_other_guides_name(page):
    """In their sentences and tables."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    code = parsed(SPAN.findall(text.replace("\n", " ")))

    assert code or page.parent.name == "start"
    check_names(page, code)


def check_names(page, code):
    for span, tree in code:
        for node in ast.walk(tree):
            try:
                if isinstance(node, ast.Attribute):
                    found(node)
                elif isinstance(node, ast.Call):
                    check_call(node)
            except (AttributeError, TypeError) as error:
                raise AssertionError(f"{page.name}: `{span}`: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_hook_is_one_of_ours(page):
    for _, here, *_ in rows(page):
        for span in SPAN.findall(here):
            if hook := METHOD.match(span):
                of = Loop if hook[1] == "compute_loss" else TrainingStepCallback
                if hook[1] in ("state_dict", "load_state_dict"):  # which a callback may have
                    continue
                expected = list(inspect.signature(getattr(of, hook[1])).parameters)[1:]
                assert (hook[2] or "").split(", ") == (expected or [""]), span


def test_each_setting_of_transformers_exists():
    transformers = packages.needed("transformers")
    packages.needed("accelerate")
    settings = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    arguments = inspect.signature(transformers.Trainer.__init__).parameters
    calls = 0
    for theirs, *_ in rows(GUIDES / "from_hugging_face.md"):
        for span in SPAN.findall(theirs):
            if named := re.match(r"(TrainingArguments|Trainer)\(", span):
                call = ast.parse(span).body[0].value
                known = settings if named[1] == "TrainingArguments" else arguments
                calls += 1
                assert {keyword.arg for keyword in call.keywords} <= set(known), span
    assert calls > 15


@pytest.mark.parametrize("page", ["from_lightning.md", "from_hugging_face.md"])
def test_a_loop_says_the_same_of_others_arguments(page):
    """Where a page says that an argument is another one of `Loop`, so does its error."""
    told = []
    for theirs, here, *_ in rows(GUIDES / page):
        names = re.match(r"`(?:Trainer|TrainingArguments)\((\w+)=", theirs)
        asked = re.match(r"`Loop\(model, task, (\w+)=[^,]*\)`", here)
        if names and asked and names[1] not in inspect.signature(Loop).parameters:
            with pytest.raises(TypeError, match=rf"{names[1]}.*{asked[1]}="):
                Loop(torch.nn.Linear(1, 1), None, **{names[1]: 1})
            told.append(names[1])
    assert len(told) > 4
