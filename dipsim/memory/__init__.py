"""What DRAM holds: the budget, the column caches, and their eviction rules."""
