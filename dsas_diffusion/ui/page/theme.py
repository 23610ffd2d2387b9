"""The demo's theme, style sheet and script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: fonts that every system has: nothing is fetched from elsewhere
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "Menlo", "Consolas", "monospace"]
STYLE_SHEET = Path(__file__).with_name("page.css")
#: a function in JavaScript, which runs when the page is there
SCRIPT = Path(__file__).with_name("page.js")


def theme() -> Any:
    """A quiet theme, light and dark."""
    import gradio as gr

    titles = {"block_title_background_fill": "transparent", "block_title_text_color": "*body_text_color"}
    labels = {"block_label_background_fill": "*background_fill_primary", "block_label_text_color": "*body_text_color"}
    edges = {"checkbox_border_color": "*neutral_400", "input_border_width": "1px", "input_border_color": "*neutral_300"}
    dark_edges = {"checkbox_border_color_dark": "*neutral_500", "input_border_color_dark": "*neutral_600"}
    same = titles | labels
    dark = {f"{name}_dark": value for name, value in same.items()} | dark_edges
    hues = {"primary_hue": "indigo", "secondary_hue": "indigo", "neutral_hue": "slate"}
    return gr.themes.Soft(**hues, font=FONTS, font_mono=MONOSPACE_FONTS).set(
        **same, **dark, **edges, block_title_padding="0", block_shadow="none", block_border_width="1px"
    )
