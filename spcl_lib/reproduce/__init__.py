"""What ./reproduce.sh does: the plan of all experiments, and the pages that show them."""
