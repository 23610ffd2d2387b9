"""dsas_diffusion/ui/example: the picture that the demo begins with, drawn as the page would draw it.

make example                     # again after the built-in model, or the concepts that ship, were learned anew
"""

from __future__ import annotations

import gradio as gr

from benchmarks.common.records import build_parser
from dsas_diffusion import load_pipeline
from dsas_diffusion.ui.page.session import Session
from dsas_diffusion.ui.services.concepts import load_shipped
from dsas_diffusion.ui.services.example import FOLDER, save_example
from dsas_diffusion.ui.services.picture_service import PictureService
from dsas_diffusion.ui.tabs.create import CreateTab

MODEL = "builtin:emoji"


def main() -> None:
    build_parser(__doc__).parse_args()
    service = PictureService(load_pipeline(MODEL, device="cpu"), MODEL, load_shipped(MODEL))
    with gr.Blocks():
        order = CreateTab(service, gr.State(Session())).first_order()
    drawing = save_example(service, order)
    service.close()
    print(f"{FOLDER}: “{order.prompt}”, moved by {drawing.moved:.1f} of 255")


if __name__ == "__main__":
    main()
