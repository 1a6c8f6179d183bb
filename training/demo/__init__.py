"""The small model that strop makes itself, and the task it is made for."""
