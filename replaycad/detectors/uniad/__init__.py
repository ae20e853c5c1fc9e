"""UniAD: a transformer with a query in every layer (You et al., NeurIPS 2022)."""
