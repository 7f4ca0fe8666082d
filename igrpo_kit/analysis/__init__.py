"""Numbers from run records: Pass@k, intervals, cost."""
