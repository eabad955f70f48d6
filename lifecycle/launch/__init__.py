"""What the processes of an engine must be started with: variables for each kind of engine, and the names of miles."""
