"""The ground floor: what every other room stands on, and what knows nothing of the method."""

VERSION = "0.1.0"
