"""Adapters: each drives one kind of engine and imports it only inside its own module."""
