"""Builds artifacts that are not up to date, one object per stage."""
