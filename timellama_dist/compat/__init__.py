"""Private and unstable calls of other packages: one function, one reason and one test each."""
