"""The unit of strength and the useful range of a concept."""
