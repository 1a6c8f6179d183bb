"""Wire shapes, one file per dialect; pure."""
