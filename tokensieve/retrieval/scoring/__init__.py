"""MaxSim and what stands in for it; fewer vectors."""
