"""W&B offline and MLflow's files have each value at its step."""

import json
import time

import numpy as np
import pytest
from noting import Notes, by_name
from toys import line_loop

from trax_torch.supervised import TrainingStepCallback, loggers


def test_what_is_not_installed_is_named_with_what_to_do(monkeypatch):
    import sys

    for package, make in (("wandb", loggers.WandbLogger), ("mlflow", loggers.MLflowLogger)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ImportError, match=rf"needs the package {package}.*trax-torch\[{package}"
        ):
            make()


def chunks_of(data):
    """The records of a file in LevelDB's log format, behind W&B's 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header goes over the end of a block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_values(folder):
    """What W&B's file of a run holds: the values by name, (step, value), and the settings."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, settings = {}, {}
    (path,) = folder.rglob("*.wandb")
    records, until = [], time.monotonic() + 120
    while not records or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < until, records  # W&B's own process writes it, after `finish`
        time.sleep(0.05)
        records = [Record.FromString(chunk) for chunk in chunks_of(path.read_bytes())]
    for record in records:
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in items.items():
            if not name.startswith("_") and name != "step":
                found.setdefault(name, []).append((items["step"], value))
        for each in record.config.update:
            settings["/".join(each.nested_key) or each.key] = json.loads(each.value_json)
    return found, settings


@pytest.mark.filterwarnings("ignore")  # W&B's own, of its dependencies
def test_wandb_offline_has_each_value_at_its_step(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds, for its own process to start
    notes = Notes()
    logger = loggers.WandbLogger(project="tests", mode="offline", dir=str(tmp_path))
    loop = line_loop(loggers=[logger, notes], log_every=2)

    class Picture(TrainingStepCallback):
        def on_step_end(self, step):
            loop.log_summary({"picture": np.zeros((4, 6, 1))}, None, "", "eval", stdout=False)

    loop.callbacks.append(Picture(loop))
    loop.run(4)

    found, settings = wandb_values(tmp_path)
    pictures = {name: found.pop(name) for name in list(found) if "eval/picture" in name}
    assert found == by_name(notes.rows)
    assert pictures["eval/picture/width"] == [(step, 6) for step in (1, 2, 3, 4)]
    assert (settings["optimizer/lr"], settings["precision"]) == (0.01, None)


@pytest.mark.filterwarnings("ignore")
def test_wandb_goes_on_with_its_run_and_closes_none_that_was_given(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds, for its own process to start
    logger = loggers.WandbLogger(project="tests", mode="offline", dir=str(tmp_path))
    loop = line_loop(loggers=logger)
    loop.run(1)
    loop.run(1)
    names = {path.stem for path in tmp_path.rglob("*.wandb")}
    assert len(names) == 1  # run-<id>

    with wandb.init(project="tests", mode="offline", dir=str(tmp_path / "own")) as run:
        line_loop(loggers=loggers.WandbLogger(run=run)).run(1)
        assert wandb.run is run
        with pytest.raises(ValueError, match="got both, run and project"):
            loggers.WandbLogger(run=run, project="tests")


@pytest.fixture
def mlflow_files(tmp_path, monkeypatch):
    """MLflow, and where its files go."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow, f"file:{tmp_path}/mlruns"


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its dependencies
def test_mlflow_files_have_each_value_at_its_step(mlflow_files):
    mlflow, uri = mlflow_files
    notes = Notes()
    logger = loggers.MLflowLogger(uri, experiment="tests", run_name="one")
    loop = line_loop(loggers=[logger, notes], log_every=2)
    loop.run(4)
    loop.log_summary({"a[0]": 0.5}, None, "", "train", stdout=False)
    loop.log_summary({"picture": np.zeros((4, 6, 3))}, None, "", "eval", stdout=False)
    loop.run(2)

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    for name, pairs in by_name(notes.rows).items():
        name = name.replace("[", "_").replace("]", "_")
        found = client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.value) for m in found] == pairs
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert run.data.params["optimizer/lr"] == "0.01"
    assert [x.path for x in client.list_artifacts(run.info.run_id)] == ["images"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_a_run_that_failed_and_goes_on_with_one(mlflow_files):
    mlflow, uri = mlflow_files

    class Raise(TrainingStepCallback):
        def on_step_end(self, step):
            if step == 2:
                raise KeyError("mine")

    with pytest.raises(KeyError):
        line_loop(loggers=loggers.MLflowLogger(uri), callbacks=[Raise]).run(3)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FAILED"

    logger = loggers.MLflowLogger(uri, run_id=run.info.run_id)
    line_loop(loggers=logger).run(1)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train/training/loss")) == 2
