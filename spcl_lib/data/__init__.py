"""Data sets: whole images with their full labels. This room knows nothing of methods and runs."""
