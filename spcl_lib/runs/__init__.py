"""Runs: their settings and profiles, one run and its folder, many runs, and what they leave."""
