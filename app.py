"""The demo: `make app`, or `python app.py`; on a Hugging Face Space this file is what runs. `dsas app` is the same."""

import sys

from dsas_diffusion.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
