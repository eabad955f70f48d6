"""The documentation that is generated from the table: pages and diagrams."""
