"""Faults injected into real runs: what ends well must equal a run that nobody disturbed."""
