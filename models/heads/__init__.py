"""Task heads over `features=True` backbones."""
