"""Runs the notebooks of docs/notebooks as a reader would, and keeps what they show.

    python tests/support/notebooks.py             # runs all, and writes what they show into them
    python tests/support/notebooks.py digits      # or some

A cell with the tag "restart" is run by a new kernel, after those with the tag "definitions".
"""

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"


def executed(path, folder):
    """A notebook after all of its cells were run, in a folder of their own."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=6000,
        resources=resources,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
    )
    client.create_kernel_manager()
    with tempfile.TemporaryDirectory() as sockets:  # not ports, which somebody else may be given
        client.km.transport, client.km.ip = "ipc", f"{sockets}/kernel"
        asyncio.run(_run(client))
    return notebook


async def _run(client):
    cells = list(enumerate(client.nb.cells))
    definitions = [(i, cell) for i, cell in cells if "definitions" in tags(cell)]
    async with client.async_setup_kernel():
        for i, cell in cells:
            if "restart" in tags(cell):
                await client.km.restart_kernel(now=True)
                await client.kc.wait_for_ready(timeout=600)
                for j, other in definitions:
                    await client.async_execute_cell(other, j)
            await client.async_execute_cell(cell, i)
        client.set_widgets_metadata()


def tags(cell):
    return cell.metadata.get("tags", [])


def text_of(cell):
    """What a cell printed, and its result as text."""
    parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
    return "\n".join(parts)


def bars_of(notebook):
    """How the progress bars of a notebook ended, as text, by the ids of their widgets.

    Without times, which are those of a machine.
    """
    states = notebook.metadata.get("widgets", {}).get(_STATE, {}).get("state", {})
    found = {}
    for name, widget in states.items():
        children = widget["state"].get("children", [])
        parts = [states[child.removeprefix("IPY_MODEL_")]["state"] for child in children]
        if len(parts) == 3:
            share, bar, rest = parts
            count, _, said = rest["value"].replace("\u2007", " ").strip().partition(" [")
            filled = "█" * round(20 * bar["value"] / bar["max"])
            loss = re.search(r"loss=[^\]]*", said)
            found[name] = f"{share['value'].strip()} |{filled:20}| {count} [{loss and loss[0]}]"
    return found


def kept(notebook):
    """A notebook as it is stored: without widgets, whose last words stay as text."""
    import nbformat

    bars = bars_of(notebook)
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            view = out.get("data", {}).pop(_VIEW, None)
            if view is not None:
                out["data"]["text/plain"] = bars[view["model_id"]]
    notebook.metadata = nbformat.NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    return notebook


def main(names):
    import nbformat

    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(kept(executed(path, folder)), path)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
