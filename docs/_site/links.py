"""Names in the text lead to the reference; and each public name is seen to have its place there."""

import builtins
import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.domains.python import ObjectEntry
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from _site import names

_NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?$", re.DOTALL)
# How an example calls what is of a class or module.
_SHORT = {
    "tl.": "trax_torch.layers.",
    "loop.": "Loop.",
    "history.": "History.",
    "loop.history.": "History.",
    "model.": "Layer.",
}
logger = logging.getLogger(__name__)


def setup(app: Any) -> None:
    """What is done as Sphinx goes on."""
    app.add_role("public-name", _public_name)
    app.connect("doctree-read", _leave_builtins)
    app.connect("env-check-consistency", _note_other_addresses)
    app.add_post_transform(LinkNames)


def _public_name(name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any) -> Any:
    """A place for a name that is described elsewhere: its word alone, which can be linked to."""
    env = inliner.document.settings.env
    node = nodes.literal(rawtext, text.rpartition(".")[2], ids=[text])
    env.domains["py"].note_object(text, "data", text, location=(env.docname, lineno))
    return [node], []


def _leave_builtins(app: Any, doctree: nodes.document) -> None:
    """A type of Python's, `bool`, is not what bears its name elsewhere, in `fastmath.numpy`."""
    for reference in list(doctree.findall(pending_xref)):
        if reference.get("refdomain") == "py" and hasattr(builtins, reference["reftarget"]):
            reference.replace_self(nodes.Text(reference["reftarget"]))


def _note_other_addresses(app: Any, env: Any) -> None:
    """The other addresses of a name lead to its home; one that has none is a warning."""
    objects = env.domains["py"].objects
    for name in names.names():
        home = objects.get(name.home)
        if home is None:
            logger.warning("%s has no place in the reference", name.address)
        elif name.address not in objects:
            objects[name.address] = ObjectEntry(home.docname, home.node_id, home.objtype, True)


class LinkNames(SphinxPostTransform):
    """Code in the text that is a public name, `Loop` or `loop.run(until=100)`, leads to it.

    Long code, a test's address, say, may go on in the next line.
    """

    default_priority = 200

    def run(self, **kwargs: Any) -> None:
        """Goes through a page's code between backticks."""
        known = _known(self.env)
        for literal in list(self.document.findall(nodes.literal)):
            text = literal.astext()
            if len(text) > 20 and literal.get("language") is None:
                literal.children = list(_breakable(text))
            entry = known.get(_bare(text))
            if entry is None or _is_in(literal, (nodes.reference, nodes.title)):
                continue
            link = make_refnode(
                self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy()
            )
            literal.replace_self(link)


def _breakable(text: str) -> Iterator[nodes.Node]:
    """The text, with places where a line may end."""
    for piece in re.split(r"(?<=[/._=,(])(?=\w)|(?<=::)", text):
        yield nodes.Text(piece)
        yield nodes.raw("", "<wbr>", format="html")


def _bare(text: str) -> str:
    match = _NAME.match(text)
    return match[1] if match else ""


def _is_in(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def _known(env: Any) -> dict[str, ObjectEntry]:
    """What words mean one thing: addresses, and their ends, if they are no words of a sentence."""
    if not hasattr(env, "_site_known"):
        objects = env.domains["py"].objects
        of_modules = {name.address for name in names.names()}
        ends: dict[str, dict[tuple[str, str], ObjectEntry]] = {}
        for address, entry in objects.items():
            if entry.objtype == "module" or address.startswith("trax_torch.fastmath"):
                continue
            parts = address.split(".")
            for end in (".".join(parts[n:]) for n in range(1, len(parts))):
                is_a_word = "." not in end and (end.islower() or address not in of_modules)
                if not is_a_word or ("_" in end and address in of_modules):
                    ends.setdefault(end, {})[entry.docname, entry.node_id] = entry
        known = dict(objects)
        known |= {end: next(iter(at.values())) for end, at in ends.items() if len(at) == 1}
        for short, whole in _SHORT.items():
            known |= {
                a.replace(whole, short, 1): e for a, e in known.items() if a.startswith(whole)
            }
        env._site_known = known
    known: dict[str, ObjectEntry] = env._site_known
    return known
