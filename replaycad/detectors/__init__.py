"""Detectors: each turns frozen features into anomaly maps, where higher is more anomalous."""
