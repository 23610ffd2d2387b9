"""What methods that train have in common: distances of distributions, and maps and probes as parameters."""
