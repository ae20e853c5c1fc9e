"""The bundled small models and the procedural world they are pre-trained on."""
