"""The appearance of the page: theme, style sheet, head and header."""

from pathlib import Path

import gradio as gr
import plotly
from gradio.themes import Base, Color
from markupsafe import Markup

from kd.evaluation import dataset_report
from kd.export.demo import STUDENT_SCRIPT
from kd.system.files import ASSETS
from kd.ui import in_browser, login
from kd.ui.rendering import render

FILES = Path(__file__).parent / "static"

EXAMPLES = sorted((ASSETS / "examples").glob("*.png"))

PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

# The hue of what can be clicked
COPPER = Color(
    name="copper",
    c50="#fdf6ef", c100="#faead9", c200="#f3d1b0", c300="#eab280", c400="#dd8c4c", c500="#c2661f",
    c600="#a5531a", c700="#854218", c800="#693619", c900="#532c17", c950="#2f170a",
)  # fmt: skip

# A warm grey, for all else
STONE = Color(
    name="stone",
    c50="#faf9f7", c100="#f3f1ee", c200="#e6e2dd", c300="#d3cec7", c400="#a39c93", c500="#756e66",
    c600="#575149", c700="#433e38", c800="#2a2622", c900="#1c1917", c950="#12100e",
)  # fmt: skip

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")

MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


def theme() -> Base:
    """Return the gradio theme: copper on warm grey, in the fonts of the reader's system."""
    return Base(primary_hue=COPPER, secondary_hue=COPPER, neutral_hue=STONE, font=SANS, font_mono=MONO).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_large_text_weight="600",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def css() -> str:
    """Return the style sheet."""
    return (FILES / "page.css").read_text() + dataset_report.CSS


def head() -> str:
    """Return what the page's head loads: our scripts, and Plotly's from this server. Nothing comes from elsewhere."""
    gr.set_static_paths([PLOTLY, *EXAMPLES])
    in_browser.serve_runtime()
    tabs = (
        "distill",
        "time_estimate",
        "push",
        "take_away",
        "check",
        "dark_knowledge",
        "datasets",
        "sweep",
        "compare",
        "in_browser",
        "runs",
    )
    names = ("common", *tabs, *(["login"] if login.is_offered() else []))
    paths = (STUDENT_SCRIPT, *(FILES / f"{name}.js" for name in names))
    scripts = Markup("").join(Markup(path.read_text()) for path in paths)
    return render("head", plotly=PLOTLY, scripts=scripts)


def header() -> str:
    """Return the wordmark and a sentence that says what this is."""
    return render("header", wordmark=Markup((ASSETS / "wordmark.svg").read_text()))
