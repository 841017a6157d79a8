"""Runs: settings and profiles, one run and its folder, many runs, and the files of a run."""
