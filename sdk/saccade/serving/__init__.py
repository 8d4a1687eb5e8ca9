"""A server around predictors: the Open Inference Protocol over HTTP and gRPC, pictures, a page, metrics.

    settings -> repository (named bundles, micro-batched) -> http.create_app, rpc.Service -> server.run

Install `saccade[serve]`. Nothing here is imported by `import saccade`.
"""
