"""Where a run is: its events folded into one small record, and that record in words."""
