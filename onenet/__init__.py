"""The paper, one file per idea (OneNet, "Towards End-to-End One-Stage Object Detection")."""


def __getattr__(name: str):
    """`from onenet import load`, without importing torch before."""
    if name == "load":
        from onenet.inference.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
