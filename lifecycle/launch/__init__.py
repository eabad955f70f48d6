"""What the processes of an engine must be started with."""
