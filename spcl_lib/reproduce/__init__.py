"""The code of ./reproduce.sh: the plan of all experiments, and the pages that show them."""
