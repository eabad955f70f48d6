"""Words: states, commands, facts, verdicts, errors and ports. No input or output, no asyncio."""
