"""Object masks by segment-anything: which weights, which prompt, which of the answers."""
