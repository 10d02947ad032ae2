"""Methods side by side: summaries over seeds, tables, published numbers."""
