"""Where the parts of MoEscope lie: in a checkout app.py, pages and .streamlit are at the top of the tree, in a wheel below _app."""

from pathlib import Path

PACKAGE = Path(__file__).parent
ABOVE = PACKAGE.parent  # where `python -m moe_core` finds the package, whatever the folder of who starts it
APP = PACKAGE / "_app" if (PACKAGE / "_app").is_dir() else ABOVE  # of app.py; streamlit reads the settings beside it
PAGES = APP / "pages"
