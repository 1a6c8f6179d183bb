"""Every SQL statement, and the records they speak in."""
