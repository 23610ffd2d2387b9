"""The files of a concept: how they are read with care, and which of them are ours to replace."""
