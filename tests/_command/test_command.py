"""`python -m trax_torch`, as it is typed."""

import functools
import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import ranks
import torch
from safetensors.torch import load_file

from trax_torch import _command, models
from trax_torch._command import text_model
from trax_torch.examples import stdlib_lm
from trax_torch.supervised import decoding, training

SMALL = [
    *("--d-model", "16", "--d-ff", "32", "--n-layers", "1", "--n-heads", "2", "--length", "32"),
    *("--batch-size", "8", "--learning-rate", "0.01", "--device", "cpu", "--eval-every", "20"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat, été. " * 300)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    """A run of 25 steps, with a tokenizer of bytes."""
    folder = str(tmp_path_factory.mktemp("runs") / "run")
    _command.main(["train", text, folder, *SMALL, "--steps", "25"])
    return folder


def said(capsys, *line):
    capsys.readouterr()
    _command.main(list(line))
    return capsys.readouterr().out


def model_of(folder):
    model = text_model.kept(folder).build()
    model.init_from_file(folder)
    return model.eval()


def test_without_a_command_it_lists_what_there_is():
    """In a process of its own; each program that it names is there."""
    done = subprocess.run(
        [sys.executable, "-m", "trax_torch"], capture_output=True, text=True, check=True
    )
    for command in ("train", "sample", "info", "export", "doctor"):
        assert re.search(rf"^    {command} ", done.stdout, re.MULTILINE)
    programs = re.findall(r"python -m (trax_torch\.\S+)", done.stdout)
    assert len(programs) == 6
    assert all(importlib.util.find_spec(name) for name in programs)


def test_a_run_is_the_example_s_and_goes_on(run, text, tmp_path, capsys):
    """To the last bit, after a resume, too; what it is need not be said again."""
    example = [*SMALL, "--text", text, "--output-dir", str(tmp_path / "example"), "--seed", "0"]
    stdlib_lm.main([*example, "--steps", "25"])
    assert training.differences(run, str(tmp_path / "example")) == []
    folder = str(tmp_path / "cut")
    _command.main(["train", text, folder, *SMALL, "--steps", "10"])
    options = ["--batch-size", "8", "--learning-rate", "0.01", "--eval-every", "20"]
    out = said(capsys, "train", text, folder, *options, "--steps", "25")

    assert f"Resumed from {folder} at step 10." in out
    assert "Held out at step 25: " in out
    whole, cut = model_of(run).state_dict(), model_of(folder).state_dict()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--d-model", "32"], r"began with d_model=16; got d_model=32. Leave that out, or give"),
        (["--tokenizer", "bpe"], r"began with tokenizer='bytes'; got tokenizer='bpe'"),
    ],
)
def test_a_run_that_goes_on_is_not_made_another(run, text, options, error):
    with pytest.raises(SystemExit, match=error):
        _command.main(["train", text, run, *options])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (["train", "/nonexistent", "{}"], "There is no such file or folder: /nonexistent"),
        (["train", __file__, "{}", "--vocab-size", "99"], "Bytes are 256 tokens. Leave --vocab"),
        (["sample", "{}"], r"has no text_model.json.*python -m trax_torch train TEXT RUN"),
        (["info", "{}"], "There is no folder .*none"),
        (["export", "{}", "out"], "There is no checkpoint 'none' in "),
    ],
)
def test_what_is_not_there_is_said_in_a_line(tmp_path, line, error):
    """No traceback; and nothing is made."""
    with pytest.raises(SystemExit, match=error):
        _command.main([word.format(tmp_path / "none") for word in line])
    assert list(tmp_path.iterdir()) == []


def test_the_example_says_that_there_is_no_text():
    with pytest.raises(SystemExit, match="There is no such file or folder: /nonexistent"):
        stdlib_lm.main(["--text", "/nonexistent"])


def test_what_is_written_is_what_decoding_gives(run, capsys):
    """Token by token, by a seed; by beams; and with weights of 8 bits."""
    prompt, options = "the c", ["--prompt", "the c", "--max-length", "12"]
    tokens = np.frombuffer(prompt.encode(), np.uint8).astype(np.int64)[None]
    settings = {"eos_id": -1, "max_length": 12}
    model = model_of(run)
    drawn = decoding.autoregressive_sample(model, tokens, seed=3, temperature=0.8, **settings)
    best = decoding.beam_search(model, tokens, n_beams=3, **settings)[:, 0]
    int8 = decoding.autoregressive_sample(
        decoding.quantize(model), tokens, temperature=0.0, **settings
    )

    def as_text(found):
        return prompt + bytes(found[0].tolist()).decode(errors="replace") + "\n"

    assert said(capsys, "sample", run, *options, "--seed", "3") == as_text(drawn)
    assert said(capsys, "sample", run, *options, "--beams", "3") == as_text(best)
    assert said(capsys, "sample", run, *options, "--temperature", "0", "--int8") == as_text(int8)
    with pytest.raises(SystemExit, match="A prompt has one token or more"):
        _command.main(["sample", run, "--prompt", ""])


def test_a_long_prompt_is_read_from_its_end(run, capsys):
    """As much of it as leaves room for what is to be written; all is printed."""
    prompt = "the cat sat on the mat. " * 5
    line = ["sample", run, "--prompt", prompt, "--max-length", "8", "--temperature", "0"]
    out = said(capsys, *line)
    tokens = np.frombuffer(prompt.encode()[-24:], np.uint8).astype(np.int64)[None]
    found = decoding.autoregressive_sample(
        model_of(run), tokens, temperature=0.0, eos_id=-1, max_length=8
    )
    assert out == prompt + bytes(found[0].tolist()).decode(errors="replace") + "\n"


def test_a_tokenizer_is_trained_and_kept_with_the_run(tmp_path, text, capsys):
    """Losses are per byte of text, so they compare; what it writes is text again."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    folder = str(tmp_path / "run")
    line = ["train", text, folder, *SMALL, "--tokenizer", "bpe", "--vocab-size", "300"]
    out = said(capsys, *line, "--steps", "30")
    model = text_model.kept(folder)
    tokenizer = text_model.tokenizer_of(folder, model)

    data = "the cat sat on the mat, été. ".encode() * 20
    tokens = tokenizer.encode(data)
    assert len(tokens) < len(data) / 2
    assert tokenizer.decode(tokens) == data.decode()
    assert "".join(tokenizer.pieces(iter(tokens))) == data.decode()
    assert 256 <= model.vocab_size == tokenizer.vocab_size <= 300
    bits = [float(x) for x in re.findall(r"bits per byte \|\s+([\d.]+)", out)]
    n_bits = np.log2(model.vocab_size) * len(tokens) / len(data)  # at first all are as likely
    assert bits[0] == pytest.approx(n_bits, rel=0.25)
    assert bits[-1] < bits[0]
    again = said(capsys, "train", text, folder, "--batch-size", "8", "--steps", "31")
    assert f"Resumed from {folder} at step 30." in again
    assert said(capsys, "sample", folder, "--prompt", "the", "--seed", "1").startswith("the")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(SystemExit, match="tokenizer.json is not there"):
        _command.main(["sample", folder])


def test_bytes_come_as_whole_characters():
    tokenizer = text_model.Tokenizer()
    pieces = list(tokenizer.pieces(iter("aé€".encode() + b"\xff")))

    assert "".join(pieces) == "aé€\ufffd"
    assert pieces[1:3] == ["", "é"]


def test_a_tokenizer_without_its_library_says_what_to_install(monkeypatch, tmp_path, text):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SystemExit, match=r"needs the package tokenizers.*trax-torch\[data\]"):
        _command.main(["train", text, str(tmp_path / "run"), "--tokenizer", "bpe"])


def test_info_tells_of_checkpoints_and_what_was_measured(run, tmp_path, capsys):
    """A byte that is another is found, by the file's name, and the status is 1."""
    out = said(capsys, "info", run)
    assert re.search(r"^model +25 +[\d,]+ +[\d.]+ kB +whole$", out, re.MULTILINE)
    n = sum(p.numel() for p in model_of(run).parameters())
    assert f" {n:,} " in out
    assert "metrics/bits per byte" in out
    for path in pathlib.Path(run).iterdir():
        n = len(list(path.iterdir())) if path.is_dir() else 1
        name = path.name + "/" * path.is_dir()
        assert re.search(rf"^{re.escape(name)} +{n} +[\d.]+ ", out, re.MULTILINE), name
    broken = tmp_path / "run"
    broken.mkdir()
    for path in (p for p in pathlib.Path(run).iterdir() if p.is_file()):
        (broken / path.name).write_bytes(path.read_bytes())
    (weights,) = broken.glob("model.*.weights.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    with pytest.raises(SystemExit) as ended:
        _command.main(["info", str(broken)])
    assert ended.value.code == 1
    assert f"{weights.name} is damaged" in capsys.readouterr().out


def test_export_writes_the_weights(run, tmp_path, capsys):
    file = tmp_path / "model.safetensors"
    assert said(capsys, "export", run, str(file)) == f"wrote {file}\n"

    model = models.TransformerLM(256, 16, 32, 1, 2, max_len=32)
    model.init_from_file(run)
    exported = load_file(file)
    assert all(torch.equal(exported[name], x) for name, x in model.state_dict().items())


def test_doctor_tells_of_the_machine(tmp_path, capsys):
    facts = dict(
        re.split(r" {2,}", line, maxsplit=1)
        for line in said(capsys, "doctor", "--folder", str(tmp_path)).splitlines()
    )
    assert torch.__version__ in facts["torch"]
    assert "B/s written in" in facts["checkpoints"]
    assert facts["ranks"].startswith("1; this one computes on ")
    assert "all-reduce" not in facts
    assert list(tmp_path.iterdir()) == []
    nowhere = said(capsys, "doctor", "--folder", str(tmp_path / "none"))
    assert f"{tmp_path / 'none'} cannot be written to" in nowhere


def of_doctor(rank, line):
    _command.main(line)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_doctor_measures_what_ranks_reach_together(tmp_path):
    """One of them speaks."""
    line = ["doctor", "--device", "cpu", "--folder", str(tmp_path)]
    ranks.values(tmp_path / "ranks", 2, functools.partial(of_doctor, line=line))
    first, second = ((tmp_path / "ranks" / f"rank{rank}.out").read_text() for rank in (0, 1))

    assert re.search(r"^all-reduce +[\d.]+ .B/s of float32, 67.1 MB at once$", first, re.MULTILINE)
    assert re.search(r"^ranks +2; this one computes on cpu$", first, re.MULTILINE)
    assert second == ""
