"""What the commands share to train and evaluate a detector."""
