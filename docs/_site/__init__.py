"""What Sphinx is told beside its configuration: an extension, of this site alone.

`names` lists what is public, and `reference` writes a page of each module; `markdown` reads
docstrings; `pages` makes pages of files that lie elsewhere, and `drawings` pictures; `links` has
names in the text lead to the reference, and sees that each public name has its place.
"""

from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx, which `names`, `reference` and `markdown` do without."""
    from _site import drawings, links, markdown, pages, reference

    for room in (reference, markdown, pages, drawings, links):
        room.setup(app)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
