"""What stands between the demo's page and whoever calls it: hosts, waiting, files, and errors in one line."""

#: what the paths of Gradio's own calls begin with
API = "/gradio_api/"
