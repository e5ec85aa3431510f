"""History."""

import json

from trax_torch.supervised.history import History


def test_a_history_gives_back_what_was_appended():
    history = History()
    history.append("train", "loss", 1, 0.5)
    history.append("train", "loss", 2, 0.25)
    history.append("eval", "b", 2, 1.0)
    history.append("eval", "a", 2, 2.0)

    assert history.get("train", "loss") == [(1, 0.5), (2, 0.25)]
    assert history.modes == ["eval", "train"]
    assert history.metrics_for_mode("eval") == ["a", "b"]


def test_what_was_never_recorded_is_empty():
    history = History()
    history.append("train", "loss", 1, 0.5)

    assert history.get("eval", "loss") == history.get("train", "acc") == []
    assert history.metrics_for_mode("eval") == []
    assert history.modes == ["train"]


def test_a_history_survives_json():
    history = History()
    history.append("train", "loss", 1, 0.1)

    copy = History.from_dict(json.loads(json.dumps(history.to_dict())))

    assert copy.to_dict() == history.to_dict() == {"_values": {"train": {"loss": [(1, 0.1)]}}}
    copy.append("train", "loss", 2, 0.2)
    assert history.get("train", "loss") == [(1, 0.1)]
