"""The paper, one file per idea (OneNet, "Towards End-to-End One-Stage Object Detection")."""
