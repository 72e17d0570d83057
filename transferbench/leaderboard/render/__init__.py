"""A table as markdown, csv, latex or json."""
