"""Hostile input to every reader: nothing but a foreseen failure may come of it."""
