"""What runs in each Ray Train worker."""
