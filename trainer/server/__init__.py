"""A parameter server with a bound on staleness, and workers that come and go."""
