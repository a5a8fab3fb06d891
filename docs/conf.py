"""How Sphinx makes HTML of these pages: ``make docs``. Nothing is fetched, a warning is an error."""

project = "tubevisor"
author = "the tubevisor authors"
project_copyright = "the tubevisor authors"

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
myst_heading_anchors = 4
suppress_warnings: list[str] = []

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = "tubevisor"
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "native"
