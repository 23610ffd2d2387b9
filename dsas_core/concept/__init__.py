"""The concept: the artifact of learning, with its evidence, its file format, its card and its place on the Hub."""
