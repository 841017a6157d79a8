"""What people look at: figures, film strips, overlays, the explorer."""
