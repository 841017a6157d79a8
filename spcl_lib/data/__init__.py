"""Data sets: each module gives whole images with their full labels, from plain arguments.

A draw (`draws`) keeps one label of every image. Nothing here knows of methods or runs.
"""
