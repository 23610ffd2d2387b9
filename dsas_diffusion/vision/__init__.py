"""Judges, segmentation and measures of pictures."""
