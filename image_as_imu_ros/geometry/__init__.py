"""Camera models, the motion field and its solvers; no network."""
