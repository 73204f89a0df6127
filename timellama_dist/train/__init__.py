"""One run: plan, driver, run directory, resume, tracking."""
