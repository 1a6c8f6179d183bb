"""Several processes that answer, and the one that decides for them."""
