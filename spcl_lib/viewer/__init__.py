"""Draws for people: figures, film strips, overlays, the explorer."""
