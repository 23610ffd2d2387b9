"""The demo's theme and style sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: fonts that every system has: nothing is fetched from elsewhere
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
FIXED = ["ui-monospace", "Menlo", "Consolas", "monospace"]
STYLE = Path(__file__).with_name("page.css")


def theme() -> Any:
    """Quiet, light and dark, with nothing that is fetched from elsewhere."""
    import gradio as gr

    titles = {"block_title_background_fill": "transparent", "block_title_text_color": "*body_text_color"}
    labels = {"block_label_background_fill": "*background_fill_primary", "block_label_text_color": "*body_text_color"}
    edges = {"checkbox_border_color": "*neutral_400", "input_border_width": "1px", "input_border_color": "*neutral_300"}
    dim = {"checkbox_border_color_dark": "*neutral_500", "input_border_color_dark": "*neutral_600"}
    same = {**titles, **labels}
    dark = {f"{name}_dark": value for name, value in same.items()}
    return gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=FIXED
    ).set(**same, **dark, **edges, **dim, block_title_padding="0", block_shadow="none", block_border_width="1px")
