"""A run in a notebook's kernel, as Jupyter has one: its bar, and what an interrupt leaves."""

import contextlib
import re
import tempfile

import pytest

pytest.importorskip("ipykernel", reason="starts a kernel: pip install ipykernel")
manager = pytest.importorskip("jupyter_client.manager", reason="talks to a kernel")

MAKE = """
import torch
from torch import nn
from trax_torch.supervised import Loop, TrainTask

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(64, 3)
rows = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))

def make_loop(folder=None):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(rows, 8)
    task = TrainTask(loader, nn.MSELoss(), optimizer, n_steps_per_checkpoint=50)
    return Loop(model, task, output_dir=folder)
"""


class Kernel:
    """A kernel, and what it says to a cell: messages of output, and how the cell ended."""

    def __init__(self, folder):
        self._sockets = tempfile.TemporaryDirectory()  # whose name is short, as sockets' must be
        self._manager = manager.KernelManager(transport="ipc", ip=f"{self._sockets.name}/kernel")
        self._manager.start_kernel(cwd=str(folder))
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=600)

    def run(self, code, when_said=None, interrupt=False):
        """Returns (messages, reply); interrupts the cell once it has said what is looked for."""
        messages, is_said = [], False

        def note(message):
            nonlocal is_said
            messages.append(message)
            text = message["content"].get("text", "")
            if interrupt and not is_said and when_said in text:
                is_said = True  # lines that come later, of the same step, interrupt it no more
                self._manager.interrupt_kernel()

        reply = self._client.execute_interactive(code, output_hook=note, timeout=600)
        return messages, reply["content"]

    def close(self):
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        self._manager.context.destroy()
        self._sockets.cleanup()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    with contextlib.closing(Kernel(tmp_path_factory.mktemp("kernel"))) as made:
        messages, reply = made.run(MAKE)
        assert reply["status"] == "ok", messages
        yield made


def said(messages, name="stdout"):
    texts = [m["content"]["text"] for m in messages if m["content"].get("name") == name]
    return "".join(texts)


def bars(messages):
    """What is shown that is no text: widgets by their names."""
    data = [m["content"]["data"] for m in messages if m["msg_type"] == "display_data"]
    return [x for x in data if "application/vnd.jupyter.widget-view+json" in x]


@pytest.mark.slow
def test_a_run_in_a_notebook_has_one_bar_with_the_loss(kernel):
    """However many lines are printed under it; it is full at the end, and shows the last loss."""
    pytest.importorskip("ipywidgets", reason="draws the bar")
    kernel.run("loop = make_loop()")
    messages, reply = kernel.run("loop.run(200)")
    shown, _ = kernel.run("print(f'{loop.loss:.4g}')")

    assert reply["status"] == "ok"
    assert len(bars(messages)) == 1
    assert said(messages).count("train MSELoss") == 5  # at steps 1, 50, 100, 150 and 200
    assert said(messages, "stderr") == ""
    texts = [
        state["value"]
        for m in messages
        if m["msg_type"] == "comm_msg" and "value" in (state := m["content"]["data"]["state"])
    ]
    assert f"loss={said(shown).strip()}]" in str(texts[-3:])
    assert 200 in texts


@pytest.mark.slow
def test_without_widgets_the_bar_is_a_line_and_nothing_warns(kernel):
    hidden = "import sys; kept = {n: sys.modules.pop(n) for n in list(sys.modules) if 'tqdm' in n}"
    kernel.run(hidden + "\nhad = sys.modules.get('ipywidgets'); sys.modules['ipywidgets'] = None")
    messages, reply = kernel.run("make_loop().run(20)")
    kernel.run("sys.modules.update(kept); sys.modules['ipywidgets'] = had")

    assert reply["status"] == "ok"
    assert bars(messages) == []
    assert re.search(r"100%.* 20/20 .*loss=", said(messages, "stderr"))
    assert "arn" not in said(messages, "stderr")


@pytest.mark.slow
def test_an_interrupt_ends_the_run_and_leaves_the_session_alive(kernel):
    """After a save; what the session holds goes on from there, and so does a new loop."""
    kernel.run("loop = make_loop('run')")
    messages, reply = kernel.run("loop.run(10_000_000)", "Step     50:", interrupt=True)
    after, alive = kernel.run("print(loop.step >= 50, make_loop('run').step - loop.step)")
    more, _ = kernel.run("n = loop.step; loop.run(3); print(loop.step - n)")

    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert "Stopped by signal 2." in said(messages)
    assert alive["status"] == "ok"
    assert said(after).endswith("True 0\n")
    assert said(more).endswith("3\n")
