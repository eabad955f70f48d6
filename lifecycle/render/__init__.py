"""The documentation that is generated from the table."""
