"""Mutation testing of the mathematics: `make mutants`."""
