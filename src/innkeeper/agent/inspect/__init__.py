"""Looking into a VM that runs, without halting it: one file for each kind of inspection."""
