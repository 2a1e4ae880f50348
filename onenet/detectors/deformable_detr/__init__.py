"""Deformable DETR (Zhu et al., 2021, arXiv 2010.04159): a sparse detector that needs no NMS."""
