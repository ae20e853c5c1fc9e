"""Brings the frozen networks that a recipe needs: from the network, or from a folder."""
