"""The Open Inference Protocol for gRPC: inference.proto, and the stubs that `generate` makes of it.

python -m saccade.serving.protocol.generate
"""
