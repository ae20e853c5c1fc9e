"""What every stage can be told, and the sets of values that have a name."""
