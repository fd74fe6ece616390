"""Analyses of runs: statistics, comparisons, roofs, accuracy joined to time; no torch."""
