"""The command `timellama`: one module for each of its commands."""
