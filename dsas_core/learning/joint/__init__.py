"""Joint training (mode "joint"): maps and gates of all sites as parameters, in one forward and one backward pass."""
