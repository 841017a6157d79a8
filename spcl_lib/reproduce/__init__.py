"""The code of ./reproduce.sh: the plan of all experiments, its steps, and the pages they end in."""
