"""A fetch plan and a device make a timeline: when Flash, DRAM and compute are busy."""
