"""The table of pipeline families."""
