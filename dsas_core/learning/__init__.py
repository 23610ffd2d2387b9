"""From prompts to a concept: capture, fit, choose the unit."""
