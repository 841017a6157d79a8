"""From finished runs to tables, sentences and measurements; every number is computed here."""
