"""Private or unstable calls of libraries, each with its reason and its test."""
