"""What stands between the demo's page and whoever calls it: hosts, waiting, files, and errors in one line."""
