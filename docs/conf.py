"""How Sphinx makes the site of `docs/`: `sphinx-build -W --keep-going docs OUT`."""

import sys
from pathlib import Path

PAGES = Path(__file__).parent
sys.path[:0] = [str(PAGES), str(PAGES.parent)]  # the site is of the package beside it

from trax_torch._version import __version__  # noqa: E402

project = "trax_torch"
author = "trax_torch authors"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "_site",  # the folder beside this file: the reference, pages made of other files, links
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_*", "**/.ipynb_checkpoints"]

add_module_names = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks keep what they put out; a test of theirs runs them

html_theme = "furo"
html_title = f"trax_torch {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

linkcheck_timeout = 20
linkcheck_retries = 2
