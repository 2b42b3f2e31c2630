"""echelon: hierarchical reinforcement learning on one shared core."""
