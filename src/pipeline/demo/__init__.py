"""A synthetic cohort with a planted truth: made on the user's machine, without a download."""
