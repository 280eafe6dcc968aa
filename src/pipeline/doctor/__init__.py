"""``python -m pipeline.doctor``: is this machine, this configuration and this cohort ready, before a night is spent on it."""
