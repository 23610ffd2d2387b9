"""What the page is made of: theme, HTML, controls, session."""
