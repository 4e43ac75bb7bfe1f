"""Make ``demo.html``: a page that runs the student in whatever browser opens it."""

from pathlib import Path

# What it shares with the page's Compare tab: it runs a student in a browser.
STUDENT_SCRIPT = Path(__file__).parent / "static" / "student.js"
