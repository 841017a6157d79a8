"""Data sets: each module gives whole images with their full labels, from plain arguments.

A draw (`draws`) keeps one label of every image. This room knows nothing of methods and runs.
"""
