"""What a host can measure: processes, their memory, their devices."""
