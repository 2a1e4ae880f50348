"""The paper, a file an idea (OneNet, "Towards End-to-End One-Stage Object Detection")."""
