"""The slide stage, a chunk of slides at a time: tissue, patches, features.

Each stage writes one file a slide, atomically, skips those that are already valid, and ends with the chunk's manifest. A slide
that fails becomes a row with a reason and a remedy; the others go on. Files prove themselves: each holds a digest of everything
that it was made from, so that a changed setting, slide, contour or checkpoint makes it (and only it) again.
"""
