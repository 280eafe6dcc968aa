"""Tumours in MRI: from NIfTI images and masks to a bag of slices, or a volume, a patient."""
