"""Map methods, one file each: how an activation is moved."""
