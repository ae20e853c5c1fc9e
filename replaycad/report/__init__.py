"""One HTML page that says what a sequence came to: for people, not for programs."""
