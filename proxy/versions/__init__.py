"""Which version serves: shelved, loaded, proven, activated, followed, kept or dropped."""
