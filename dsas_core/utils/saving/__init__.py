"""Saving without loss: drafts and locks, folders that are replaced file by file, names, and signatures of our files."""
