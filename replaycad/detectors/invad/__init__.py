"""InvAD: rebuilds frozen features from a narrow code and distrusts where that fails."""
