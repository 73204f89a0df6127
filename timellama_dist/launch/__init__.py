"""What runs on the driver: Ray Train, the progress it shows, the run directory."""
