"""Generating pictures and laying them out."""
