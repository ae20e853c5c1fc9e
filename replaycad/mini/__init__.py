"""The bundled small models: their weights, and in a checkout what made them."""
