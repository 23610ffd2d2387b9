"""What a diffusers pipeline is to us: its family, parts, tokens, sites, and the rows of its batches."""
