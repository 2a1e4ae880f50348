"""Use of a trained network: prediction on images, export with a check, the released weights."""
