"""mi_align: RLHF, DPO and contrastive learning as one thing."""
