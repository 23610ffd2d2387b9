"""What a model is to us: sites, the one way to hook them, fingerprints, names and devices."""
