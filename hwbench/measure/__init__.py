"""How a number is made, as the parent sees it: plan, schedule, replicates, ceilings; no torch."""
