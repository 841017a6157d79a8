"""Turns finished runs into tables, sentences and measurements; computes every number itself."""
