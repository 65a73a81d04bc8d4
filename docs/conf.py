"""Settings of the documentation: `make docs`."""

import anem

project, author, version = "anem", "the anem developers", anem.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
autodoc_member_order = "bysource"
exclude_patterns = ["build"]
suppress_warnings = ["myst.xref_missing"]  # tables in results/ are for readers of the repository, no pages of this site


def setup(app):
    """Bars in docstrings are absolute values, not substitutions."""

    def keep_bars(app, what, name, obj, options, lines):
        lines[:] = [line.replace("|", r"\|") for line in lines]

    app.connect("autodoc-process-docstring", keep_bars)
