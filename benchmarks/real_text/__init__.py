"""The ruler for real language models: labelled texts, judges, measurements, a grid of equal cost, and intervals."""
