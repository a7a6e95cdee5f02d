"""Detection data sets: files in COCO's format, and scenes of handwritten digits that need no download."""
