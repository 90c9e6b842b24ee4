"""The store: entries by content key, records of the studies that refer to them, results as tables, and what may go."""
