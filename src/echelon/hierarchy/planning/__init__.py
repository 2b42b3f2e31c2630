"""Planners that a level may use: each turns a state and a far goal into a nearer aim."""
