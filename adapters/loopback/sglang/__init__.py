"""SGLang's dialect: the HTTP API of sglang 0.5.23, its scheduler's pauses, and the assertions on which it exits."""
