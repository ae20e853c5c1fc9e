"""Images of the user: where they lie, how they are read, treated and mixed."""
