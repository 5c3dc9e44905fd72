"""Training on responses that the policy draws itself: policy gradients, and pairwise methods on fresh pairs."""
