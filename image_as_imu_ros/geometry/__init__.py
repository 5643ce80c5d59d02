"""Camera models, the motion field and its solvers; numpy only, no network."""
