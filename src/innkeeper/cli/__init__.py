"""The command line."""

import gc

# A command makes little garbage and soon ends: collecting while modules are imported took 2 ms of each.
gc.set_threshold(20_000, 50, 50)
