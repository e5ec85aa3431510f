"""A Trax file -> a safetensors file and a JSON file."""

import json
import os

import torch

from trax_torch.interop._pickle import read


def convert(path: str, output_dir: str) -> list[str]:
    """Writes weights and state to `weights.safetensors`, and what is known of them to `info.json`.

    Weights are named `w.0`, `w.1`, ... in Trax's order, state `s.0`, ... Each file is written whole
    or not at all.

    Args:
      path: a file of Trax's, as `read` takes it.
      output_dir: a folder; made if there is none.

    Returns:
      The names of the files written.
    """
    from safetensors.torch import save_file

    checkpoint = read(path, with_slots=False)
    tensors = {f"w.{i}": t for i, t in enumerate(checkpoint.flat_weights)}
    tensors |= {f"s.{i}": t for i, t in enumerate(checkpoint.flat_state)}
    signature = checkpoint.input_signature
    items = signature if isinstance(signature, tuple) else (signature,) if signature else ()
    info = {
        "step": checkpoint.step,
        "version": checkpoint.version,
        "input_signature": [
            {"shape": item.shape, "dtype": str(item.dtype).removeprefix("torch.")} for item in items
        ],
        "opt_params": checkpoint.opt_params,
        "history": checkpoint.history,
    }
    text = json.dumps(info, indent=1, default=torch.Tensor.tolist) + "\n"
    os.makedirs(output_dir, exist_ok=True)
    names = [os.path.join(output_dir, name) for name in ("weights.safetensors", "info.json")]
    partial = [f"{name}.{os.urandom(4).hex()}.tmp" for name in names]
    try:
        with open(partial[1], "x", encoding="utf-8") as f:
            f.write(text)
        save_file(tensors, partial[0])
        os.chmod(partial[0], os.stat(partial[1]).st_mode)  # safetensors writes for the owner alone
        for a, b in zip(partial, names, strict=True):
            os.replace(a, b)
    finally:
        for name in partial:
            if os.path.exists(name):
                os.unlink(name)
    return names
