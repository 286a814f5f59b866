"""The machine in front of us: measures its Flash and DRAM, and compares predictions with real reads."""
