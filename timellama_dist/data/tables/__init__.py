"""A user's files become clean series: formats, columns, times, frequency, gaps, findings."""
