"""Learning from ratings, in processes of its own."""
