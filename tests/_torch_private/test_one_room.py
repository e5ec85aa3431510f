"""Nobody else names what torch does not promise."""

import ast
import re
from pathlib import Path

import trax_torch

PACKAGE = Path(trax_torch.__file__).parent
SOURCES = {path: path.read_text() for path in PACKAGE.rglob("*.py")}


def test_nobody_else_names_what_torch_does_not_promise():
    """No `torch._...`, and none of the names that the room knows, in any other file."""
    room = PACKAGE / "_torch_private"
    inside = "".join(source for path, source in SOURCES.items() if path.parent == room)
    names = set(re.findall(r'"(_[a-z]\w+)"', inside)) | {"_orig_mod", "_version"}
    own = {"_parameters", "_buffers", "_modules", "_load_from_state_dict"}  # a Layer's, a Module
    for path, source in SOURCES.items():
        if path.parent == room:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert not re.match(r"torch(\.\w+)*\._[a-z]", text), f"{path}: {text}"
                assert node.attr not in names - own, f"{path}: {text}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.fullmatch(r"torch\.[\w.]*_\w+", node.value), f"{path}: {node.value}"
