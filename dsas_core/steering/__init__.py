"""Steering: what happens at the sites while a steered model runs."""
