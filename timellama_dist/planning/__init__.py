"""Memory, communication and step time of a run from formulas alone: no weights, no framework."""
