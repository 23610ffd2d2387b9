"""`make demo`, and the demo in a browser: how long visitors wait, many at once, pictures of it."""
