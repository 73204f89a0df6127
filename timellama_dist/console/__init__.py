"""How a command talks to a person: progress, records of a run, exit codes."""
