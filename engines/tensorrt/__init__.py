"""TensorRT: builder, run time, and the parser that judges every exported graph."""
