"""One driver per engine behind one Protocol."""
