"""Statistics, tables and figures of records."""
