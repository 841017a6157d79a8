"""The ground floor: every other room uses it, and it knows nothing of the method."""

VERSION = "0.1.0"
