"""Sphinx settings. Built by `course.py book`, from the repository's root: sphinx -c book . OUT

Nothing is fetched and nothing is run: notebooks are shown with the outputs that are committed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from book.project import pyproject, repository  # noqa: E402

project = "minilm"
author = copyright = "The minilm authors"
release = version = pyproject()["project"]["version"]

root_doc = "book/index"
include_patterns = ["book/*.md", "notebooks/*.ipynb"]
# Folders that Sphinx need not walk through to find out that they hold no page.
exclude_patterns = [".*", "**/.ipynb_checkpoints", "book/_build", "runs", "build", "dist"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "book.extension"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # scripts from a server; every slider is followed by a figure
nb_merge_streams = True

autodoc_inherit_docstrings = False  # torch.nn.Module's are about something else
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_title = "minilm"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "repository_url": repository(),
    "repository_branch": "main",
    "path_to_docs": "",  # pages have their place in the repository in their names
    "use_repository_button": True,
    "use_issues_button": True,
    "use_source_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search already
    "show_toc_level": 1,
    "launch_buttons": {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    },
}
