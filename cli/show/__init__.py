"""Looking: orders, results, deposits, lag."""
