"""Sparse R-CNN (arXiv 2011.12450): learned proposals, refined stage after stage."""

from onenet.detectors.sparse_rcnn.model import SparseRCNN

__all__ = ["SparseRCNN"]
