"""Prompt files: reading, templates, drafts and hints."""
