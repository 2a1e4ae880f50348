"""Sparse R-CNN (arXiv 2011.12450): learned proposals, refined stage after stage."""
