"""Texts and YAML that others wrote, read with care."""
