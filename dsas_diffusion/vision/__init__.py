"""Judges of pictures, segmentation, and measures of similarity and localisation."""
