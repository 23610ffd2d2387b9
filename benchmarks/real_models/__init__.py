"""Language models that others trained, for figures that say something of real weights."""
