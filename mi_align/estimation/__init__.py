"""Estimates of what cannot be computed: chances of success and mutual information, from samples."""
