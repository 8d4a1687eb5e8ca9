"""The demo's data and models: handwritten digits on photographs, and four small networks that read them."""
