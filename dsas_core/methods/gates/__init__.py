"""Gates, one file each: when an activation is moved."""
