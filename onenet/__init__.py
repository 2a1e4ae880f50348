"""OneNet, "Towards End-to-End One-Stage Object Detection" (arXiv 2012.05780v1), as a suite."""
