"""What may follow what: the table, guards, proofs, and what becomes known. Pure."""
